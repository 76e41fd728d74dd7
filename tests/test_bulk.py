"""Runs over collections: rows equal single results, and depend on neither workers nor interruptions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import avgrad
from avgrad import InputError, MediaError, Prompt
from avgrad.bulk import Run
from avgrad.bulk.find import localizer_of
from avgrad.bulk.folder import RunFolder
from avgrad.bulk.overlays import results_folder, save_overlays
from avgrad.bulk.schema import SCHEMA
from avgrad.bulk.shard import Explainer
from avgrad.media import load_image
from avgrad.scenes.samples import samples
from tests.bulk_small import SIZE, contents, localizer, make_collection, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(folder, tmp_path_factory.mktemp("runs") / "undisturbed")


def test_rows_are_in_order_with_errors_among_them(folder: Path, undisturbed: Run) -> None:
    table = undisturbed.table()
    assert table.schema.equals(SCHEMA)
    assert table["row"].to_pylist() == list(range(14)) == list(range(len(undisturbed)))
    paths = [*sorted((folder / "one").iterdir()), *sorted((folder / "two").iterdir())]
    assert table["path"].to_pylist() == table["id"].to_pylist() == [str(path) for path in paths]
    assert [row for row, _ in undisturbed.errors()] == [6, 7]
    messages = dict(undisturbed.errors())
    assert "broken.jpg is a damaged JPEG image" in messages[6]
    assert "00000.png is empty" in messages[7]
    broken = table.slice(6, 1).to_pylist()[0]
    filled = {name for name, value in broken.items() if value is not None}
    assert filled == {"row", "id", "path", "error"}
    with pytest.raises(MediaError, match=r"row 6: broken.jpg"):
        undisturbed[6]


def test_rows_are_the_results_of_single_images(undisturbed: Run) -> None:
    alone = localizer()
    for result, row in zip(undisturbed, (n for n in range(14) if n not in (6, 7)), strict=True):
        alone.set_image(result.image)
        expected = alone.localize(text=["a dog", "a bell"])
        torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(result.heatmaps, expected.heatmaps, rtol=0, atol=2e-3)  # float16 maps
        torch.testing.assert_close(result.maps, expected.maps, rtol=0, atol=float(expected.maps.abs().max()) * 6e-4)
        values = undisturbed.row(row)
        embedding = torch.tensor(values["embedding"], dtype=torch.float32)
        own = alone.model.vision.encode(alone.model.preprocess.whole(result.image, SIZE)[None])[0]
        torch.testing.assert_close(embedding, own, rtol=0, atol=5e-4)
        assert (values["width"], values["height"]) == result.image.size
        for index, prompt in enumerate(values["prompts"]):
            assert (prompt["label"], prompt["modality"]) == (("a dog", "a bell")[index], "text")
            assert tuple(prompt["peak"].values()) == result.peak(index)
            assert tuple(prompt["box"].values()) == result.boxes(0.5)[index][0]  # these images are not larger than 256
        assert (result.layers, result.model, result.method) == (expected.layers, "mini", "legrad")
        assert (result.options, result.dtype, result.device) == (expected.options, expected.dtype, "cpu")
        assert result.name == values["id"]


def test_boxes_of_large_images_cover_those_of_the_heatmap(tmp_path: Path) -> None:
    load_image(samples()[0].image).resize((1500, 1100)).save(tmp_path / "large.png")
    found = run(tmp_path / "large.png", tmp_path / "run")
    result, values = found[0], found.row(0)
    for index, prompt in enumerate(values["prompts"]):
        exact, box = result.boxes(0.5)[index][0], list(prompt["box"].values())
        assert np.abs(np.subtract(box, exact)).max() <= 2 * 1500 / 256
        assert tuple(prompt["peak"].values()) == result.peak(index)


@pytest.mark.parametrize("workers", [1, 5])
def test_the_same_bits_with_other_numbers_of_workers(
    folder: Path, undisturbed: Run, tmp_path: Path, workers: int
) -> None:
    assert contents(run(folder, tmp_path / "run", workers=workers)) == contents(undisturbed)


def test_goes_on_after_an_interruption_anywhere(
    folder: Path, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call ends with an error, the k-th after k batches: at last all is as if it had never been interrupted."""
    locate, out = Explainer._locate, tmp_path / "run"
    for batches in range(9):
        count = 0

        def interrupted(self: Explainer, *arguments: Any, after: int = batches) -> None:
            nonlocal count
            count += 1
            if count > after:
                raise KeyboardInterrupt
            locate(self, *arguments)

        monkeypatch.setattr(Explainer, "_locate", interrupted)
        try:
            run(folder, out)
        except KeyboardInterrupt:
            continue
        break
    else:
        pytest.fail("the run made no progress")
    assert contents(avgrad.read_run(out)) == contents(undisturbed)


def test_finished_shards_are_not_computed_again(folder: Path, undisturbed: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed.folder.path, out)
    (out / "shards" / "000001.parquet").unlink()
    partial = avgrad.read_run(out)
    assert (len(partial), partial.folder.missing()) == (9, [1])
    assert partial.table(["row"])["row"].to_pylist() == [0, 1, 2, 3, 4, 10, 11, 12, 13]
    with pytest.raises(InputError, match="row 5 is not there yet"):
        partial.row(5)
    times = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    (out / "shards" / ".1.abc.part").write_bytes(b"left by a killed process")
    assert contents(run(folder, out)) == contents(undisturbed)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_goes_on_with_the_threads_that_it_was_begun_with(
    folder: Path, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed.folder.path, out)
    (out / "shards" / "000000.parquet").unlink()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert contents(run(folder, out)) == contents(undisturbed)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"text": ["a dog"]}, "prompts"),
        ({"shard_size": 6}, "shard_size 5, not 6"),
        ({"localizer": "gradcam"}, 'method "legrad", not "gradcam"'),
    ],
)
def test_another_run_in_the_folder_is_refused(
    folder: Path, undisturbed: Run, options: dict[str, Any], difference: str
) -> None:
    if "localizer" in options:
        options = {"localizer": localizer(method=options["localizer"])}
    with pytest.raises(InputError, match="holds a run with " + difference):
        run(folder, undisturbed.folder.path, **options)


def test_other_prompts_of_the_same_names_are_refused(folder: Path, undisturbed: Run) -> None:
    one = localizer().encode(text=["a cat", "a bell"])
    prompts = [Prompt(one[0].embedding, "a dog", "text"), one[1]]
    with pytest.raises(InputError, match="other prompts of these names"):
        run(folder, undisturbed.folder.path, text=None, prompts=prompts)


def test_folders_that_hold_something_else_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        run(folder, folder)
    with pytest.raises(InputError, match="holds no run; expected the --out"):
        avgrad.read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"something": "else"}')
    with pytest.raises(InputError, match="not the manifest of a run"):
        avgrad.read_run(tmp_path)


def test_sources_and_numbers_are_checked(folder: Path, tmp_path: Path) -> None:
    for sources, message in (
        (tmp_path / "missing", "does not exist; accepted are"),
        (tmp_path, "has no image"),
        (folder / "*.nothing", "has no image"),
    ):
        with pytest.raises(InputError, match=message):
            run(sources, tmp_path / "run")
    for name in ("batch_size", "workers", "shard_size"):
        with pytest.raises(InputError, match=f"{name}=0"):
            run(folder, tmp_path / "run", **{name: 0})


def test_a_damaged_shard_is_named(folder: Path, undisturbed: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed.folder.path, out)
    (out / "shards" / "000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"000000.parquet is damaged"):
        avgrad.read_run(out).row(0)


def test_rows_with_prompts_of_their_own(folder: Path, tmp_path: Path) -> None:
    sound = samples()[0].objects[0].sound
    lines = [
        {"image": "one/00002.png", "text": ["a guitar", "a drum"]},
        {"image": "one/00004.png", "audio": str(sound), "text": "a cat"},
        {"image": "one/00006.png"},
        {"image": "one/00008.png", "audio": "missing.wav"},
        {"image": "one/00010.png", "text": " "},
    ]
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = run(folder / "table.jsonl", tmp_path / "run", text="a dog", templates="a photo of {}")
    labels = [[prompt["label"] for prompt in found.row(row)["prompts"]] for row in range(3)]
    assert labels == [["a dog", "a guitar", "a drum"], ["a dog", Path(sound).name, "a cat"], ["a dog"]]
    assert dict(found.errors()) == {
        3: next(
            message for row, message in found.errors() if row == 3 and "audio: missing.wav does not exist" in message
        ),
        4: "text: text is empty; give at least one word",
    }
    alone = localizer()
    alone.set_image(folder / "one" / "00004.png")
    expected = alone.localize(prompts=alone.encode(audio=sound, text=["a cat", "a dog"], templates="a photo of {}"))
    result = found[1]
    order = [2, 0, 1]
    torch.testing.assert_close(result.scores, expected.scores[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(result.heatmaps, expected.heatmaps[order], rtol=0, atol=2e-3)
    for prompt, place in zip(result.prompts, order, strict=True):
        torch.testing.assert_close(prompt.embedding, expected.prompts[place].embedding, rtol=0, atol=1e-3)


def test_without_prompts_embeddings_alone_are_kept(folder: Path, undisturbed: Run, tmp_path: Path) -> None:
    found = run(folder, tmp_path / "run", text=None)
    assert all(prompts == [] for prompts in found.table(["prompts"])["prompts"].to_pylist() if prompts is not None)
    for one, other in zip(found.table()["embedding"], undisturbed.table()["embedding"], strict=True):
        if one.is_valid:
            np.testing.assert_allclose(one.values.to_numpy(), other.values.to_numpy(), rtol=0, atol=1e-3)
    with pytest.raises(InputError, match="row 0 has no prompts"):
        found[0]


def test_options_and_order_of_normalization_come_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("localizer", "bulk.shard", "bulk.folder"):  # as SigLIP's are
        monkeypatch.setattr(f"avgrad.{module}.normalizes_first", lambda view: True)
    alone = localizer(layers=-2, pooling="cls", backward_dtype=torch.bfloat16)
    found = run(folder / "one" / "00002.png", tmp_path / "run", localizer=alone)
    alone.set_image(folder / "one" / "00002.png")
    expected = alone.localize(text=["a dog", "a bell"])
    assert found[0].normalized_first and expected.normalized_first
    assert found[0].layers == expected.layers == [4, 5]
    assert found[0].options == {**expected.options, "backward_dtype": "torch.bfloat16"}
    torch.testing.assert_close(found[0].heatmaps, expected.heatmaps, rtol=0, atol=2e-3)
    assert tuple(found.row(0)["prompts"][0]["box"].values()) == found[0].boxes(0.5)[0][0]
    settings = localizer_of(found, alone.model).settings
    assert (settings.layers, settings.pooling, settings.options) == ([4, 5], "cls", {"backward_dtype": torch.bfloat16})


def test_pandas_and_duckdb_read_it(undisturbed: Run) -> None:
    frame = undisturbed.to_pandas(["row", "id", "error"])
    assert list(frame.columns) == ["row", "id", "error"]
    assert frame["error"].notna().sum() == 2
    with pytest.raises(InputError, match="there is no column 'x'"):
        undisturbed.to_pandas(["x"])
    shards = undisturbed.folder.path / "shards" / "*.parquet"
    rows = duckdb.sql(
        f"select row, p.label, p.score, p.peak.x, len(p.map), len(embedding) "
        f"from (select row, embedding, unnest(prompts) as p from '{shards}') order by row, p.label desc"
    ).fetchall()
    assert len(rows) == 24
    width = RunFolder.open(undisturbed.folder.path).embeddings().shape[1]
    row, label, score, x, cells, width_found = rows[2]
    expected = undisturbed.row(1)["prompts"][0]
    assert (row, label, x, cells, width_found) == (1, "a dog", expected["peak"]["x"], len(expected["map"]), width)
    assert score == pytest.approx(expected["score"])


def test_overlays_on_request(folder: Path, undisturbed: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed.folder.path, out)
    found = avgrad.read_run(out)
    assert save_overlays(found, overlays=1, heatmaps=True) == []
    folders = sorted((out / "results").iterdir())
    assert folders == [results_folder(found, row) for row in range(14) if row not in (6, 7)]
    assert {path.name for path in folders[0].iterdir()} == {
        "overlay_0_a_dog.jpg", "image.jpg", "heatmaps.npz", "result.json",
    }  # fmt: skip
    with np.load(folders[0] / "heatmaps.npz") as file:
        assert file["heatmaps"].shape == (2, 160, 160)


def test_files_are_plain_parquet_of_consecutive_rows(undisturbed: Run) -> None:
    for number, path in enumerate(undisturbed.folder.shards()):
        table = pq.read_table(path)
        assert table["row"].to_pylist() == list(range(*undisturbed.folder.bounds(number)))
