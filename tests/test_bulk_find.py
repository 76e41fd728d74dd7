"""Searching a run: exact ranks, heatmaps of what is found, and a contact sheet."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import avgrad
from avgrad import InputError, PromptError
from avgrad.bulk import Run
from avgrad.bulk.index import build_index, nearest
from avgrad.bulk.sheet import write_sheet
from avgrad.scenes.samples import samples
from tests.bulk_small import localizer, make_collection, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("collection")
    return run(make_collection(folder / "images"), folder / "run")


def test_the_best_first_with_their_heatmaps(made: Run) -> None:
    sound = samples()[0].objects[0].sound
    hits = avgrad.find(made.folder.path, text="a dog", audio=sound, top=4)
    alone, scores = localizer(), {}
    prompts = alone.encode(audio=sound, text="a dog")
    for row in range(14):
        if row not in (6, 7):
            alone.set_image(made.row(row)["path"])
            scores[row] = alone.localize(prompts=prompts)
    means = {row: float(result.scores.mean()) for row, result in scores.items()}
    assert [hit.row for hit in hits] == sorted(means, key=lambda row: -means[row])[:4]
    for hit in hits:
        assert hit.score == pytest.approx(means[hit.row], abs=1e-3)
        assert hit.id == made.row(hit.row)["id"]
        assert hit.result is not None
        torch.testing.assert_close(hit.result.heatmaps, scores[hit.row].heatmaps, rtol=0, atol=1e-5)
        assert hit.result.name == hit.id


def test_only_what_is_found_is_explained(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    explained: list[str] = []
    set_image = avgrad.Localizer.set_image
    monkeypatch.setattr(
        avgrad.Localizer, "set_image", lambda self, image: (explained.append("one"), set_image(self, image))
    )
    assert len(avgrad.find(made, text="a dog", top=3, model=localizer().model)) == 3
    assert len(explained) == 3
    hits = avgrad.find(made, text="a dog", top=100, explain=False)
    assert len(hits) == 12  # two of the 14 images cannot be read
    assert all(hit.result is None and hit.error == "" for hit in hits)
    assert len(explained) == 3


@pytest.mark.parametrize("top", [1, 7, 1000, 5000])
def test_nearest_is_exact(tmp_path: Path, made: Run, top: int) -> None:
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((1000, 64)).astype(np.float16)
    embeddings[500:510] = embeddings[3]  # ties
    schema = pa.schema([("row", pa.int64()), ("embedding", pa.list_(pa.float16(), 64))])
    with pa.ipc.new_file(str(tmp_path / "index.arrow"), schema) as writer:
        for start in (0, 300, 301, 999):
            part = embeddings[start : {0: 300, 300: 301, 301: 999, 999: 1000}[start]]
            values = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel(), pa.float16()), 64)
            rows = pa.array(np.arange(start, start + len(part)) * 3)
            writer.write_batch(pa.record_batch([rows, values], schema=schema))
    query = torch.from_numpy(embeddings[3].astype(np.float32))
    scores, rows = nearest(tmp_path / "index.arrow", query, top)
    exact = (embeddings.astype(np.float64) @ embeddings[3].astype(np.float64)).round(3)
    order = np.lexsort((np.arange(1000), -exact))[:top]
    np.testing.assert_allclose(scores, exact[order], rtol=0, atol=2e-3)
    assert rows[: min(top, 11)].tolist() == (order * 3)[: min(top, 11)].tolist()
    assert set(rows.tolist()) == set((order * 3).tolist())


def test_the_index_follows_the_run(made: Run, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "run"
    shutil.copytree(made.folder.path, out)
    for path in [*(out / "shards").iterdir()][:2]:
        path.unlink()
    (out / "embeddings.arrow").unlink(missing_ok=True)
    partial = avgrad.read_run(out)
    index = build_index(partial.folder)
    written = index.stat().st_mtime_ns
    assert build_index(partial.folder).stat().st_mtime_ns == written
    before = len(avgrad.find(partial, text="a dog", top=100, explain=False))
    assert before < 12
    shutil.copytree(made.folder.path / "shards", out / "shards", dirs_exist_ok=True)
    assert len(avgrad.find(partial, text="a dog", top=100, explain=False)) == 12
    index.write_bytes(b"damaged")
    assert len(avgrad.find(partial, text="a dog", top=100, explain=False)) == 12
    shutil.rmtree(out / "shards")
    with pytest.raises(InputError, match="has no rows yet"):
        avgrad.find(partial, text="a dog")


def test_images_that_are_gone_or_changed(tmp_path: Path) -> None:
    made = run(make_collection(tmp_path / "images", 6), tmp_path / "run")
    for path in sorted((tmp_path / "images" / "one").iterdir())[:2]:
        path.unlink()
    (tmp_path / "images" / "one" / "00002.png").write_bytes((tmp_path / "images" / "one" / "00004.png").read_bytes())
    hits = {hit.row: hit for hit in avgrad.find(made, text="a <dog>", top=10)}
    assert "does not exist" in hits[0].error
    assert "has changed since the run" in hits[1].error
    assert sum(hit.result is not None for hit in hits.values()) == 4
    page = write_sheet(tmp_path / "sheet", list(hits.values()), len(made)).read_text()
    assert "<h1>a &lt;dog&gt;</h1>" in page
    assert "6 best of 8 images" in page
    assert len(re.findall("data:image/jpeg", page)) == 4
    assert "does not exist" in page


def test_arguments_are_checked(made: Run, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no prompt"):
        avgrad.find(made)
    with pytest.raises(InputError, match="top=0"):
        avgrad.find(made, text="a dog", top=0)
    with pytest.raises(InputError, match="holds no run"):
        avgrad.find(tmp_path, text="a dog")
    other = localizer().model
    other.name = "other"
    with pytest.raises(InputError, match=r"model is other, and .* was made with mini"):
        avgrad.find(made, text="a dog", model=other)
