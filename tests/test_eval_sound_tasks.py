"""The benchmarks of sound source localization, end to end on small data in their layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_layouts import WRITERS, write_flickr, write_interactive, write_vggss
from eval_small import small_model
from PIL import Image
from test_eval_runner import same_bits

from avgrad import attribute
from eval.__main__ import benchmark
from eval.compare import bootstrap, compare_runs
from eval.metrics import sound_source as ss
from eval.runner import Settings
from eval.store import RunFolder
from eval.task import DataError, Inputs, get_task
from eval.tasks.flickr_soundnet import FlickrSoundNet
from eval.tasks.is3 import Is3
from eval.tasks.vggss import VggSs, VggSsExtended, VggSsNegatives


def results(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["results"]
    return found


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_end_to_end(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 4 if name.endswith("extended") else 6  # two more are negatives
    task = get_task(name)(WRITERS[name](tmp_path / "data", count))
    assert (task.num_rows, len(task.items), task.problems) == (6, 6, [])
    benchmark(small_model(), task, tmp_path / "run", Settings(batch_size=4), {}, workers=1)
    found = results(tmp_path / "run")
    assert list(dict.fromkeys(row["method"] for row in found)) == ["legrad", "cosine", "raw_attention"]
    assert all(0 <= row[figure] <= 1 for row in found for figure in task.columns)
    assert "6 of 6 rows evaluated" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/jpeg;base64,") == 6 * 5
    measures = RunFolder.open(tmp_path / "run").measures()
    row = type(task).summarize(measures)[0]
    # the bootstrap's figures of the images as they are
    figures = task.resampler(measures, row)(np.ones((1, len(np.unique(measures.field("image"))))))
    for figure, (value,) in figures.items():
        assert value == pytest.approx(row.figures[figure], abs=1e-12), figure
    assert set(figures) == set(task.columns)


def test_figures_are_those_of_the_library(tmp_path: Path) -> None:
    """The whole way again by the public face, image by image."""
    task, model = VggSs(write_vggss(tmp_path / "data", 4)), small_model()
    benchmark(model, task, tmp_path / "run", Settings(("legrad",)), {}, workers=1)
    records = json.loads((tmp_path / "data" / "metadata" / "vggss.json").read_text())
    rule, cious = ss.RULES["ez-vsl"], []
    for item, record in zip(task.items, records, strict=True):
        image = Image.open(tmp_path / "data" / "frames" / f"{record['file']}.jpg").convert("RGB")
        pixels = model.preprocess(image.resize((224, 224), Image.Resampling.BICUBIC))
        prompt = model.encode_audio([task.load(item, Inputs.of(model)).prompts[0]])[0]  # type: ignore[arg-type]
        raw = attribute(model, pixels[None], prompt[None], per_layer=True).sum(2)[0]
        large = ss.upsample(raw.numpy(), rule)[0]
        truth = np.zeros((224, 224), dtype=bool)
        for left, top, right, bottom in (224 * np.array(record["bbox"])).astype(int):
            truth[top:bottom, left:right] = True
        cious.append(ss.ciou(ss.median_mask(ss.min_max(large), rule), truth))
    (row,) = results(tmp_path / "run")
    assert row["ciou"] == ss.success_rate(np.array(cious))
    assert row["auc"] == pytest.approx(ss.success_auc(np.array(cious)), abs=1e-12)


def test_annotators_of_flickr_vote(tmp_path: Path) -> None:
    task = FlickrSoundNet(write_flickr(tmp_path, 3))
    assert [np.unique(item.truth).tolist() for item in task.items[:1]] == [[0.0, 0.5]]
    assert set(np.unique(task.items[2].truth)) <= {0.0, 0.5, 1.0}
    one = tmp_path / "Annotations" / "10000000000.xml"
    box = "<bbox><id>9</id><x>8</x><y>16</y><x>128</x><y>64</y></bbox>"
    one.write_text(f"<root><a>{box}</a><a>{box}</a></root>")
    expected = np.zeros((224, 224))
    expected[14:56, 7:112] = 1
    assert np.array_equal(FlickrSoundNet(tmp_path).items[0].truth, expected)


def test_sounds_of_an_image_belong_together(tmp_path: Path) -> None:
    task = Is3(write_interactive(tmp_path, 4))
    assert [(item.image, item.class_name) for item in task.items] == [
        ("dog_guitar_0", "dog"),
        ("dog_guitar_0", "guitar"),
        ("dog_guitar_1", "dog"),
        ("dog_guitar_1", "guitar"),
    ]
    assert not task.items[3].truth.any()


def test_bad_data_are_reported(tmp_path: Path) -> None:
    root = write_vggss(tmp_path, 7)
    table, records = root / "metadata" / "vggss_test.csv", root / "metadata" / "vggss.json"
    names = table.read_text().split()
    changed = json.loads(records.read_text())
    changed[1]["bbox"] = [[0.1, 0.2, 0.3]]
    changed[2]["bbox"] = None
    changed[3]["class"] = "\udcff"
    records.write_text(json.dumps(changed))
    (root / "audio" / f"{names[4]}.wav").unlink()
    (root / "frames" / f"{names[5]}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    table.write_bytes("\n".join([*names, "..", "unknown", "x" * 300]).encode() + b"\nb\xffd\n\n")
    task = VggSs(root)
    assert task.num_rows == 11
    assert [(problem.row, problem.kind) for problem in task.problems] == [
        (2, "unreadable row"),
        (3, "unreadable row"),
        (4, "unreadable row"),
        (5, "missing file"),
        (8, "unreadable row"),
        (9, "unreadable row"),
        (10, "unreadable row"),
        (11, "unreadable row"),
    ]
    benchmark(small_model(), task, tmp_path / "run", Settings(("cosine",)), {}, workers=1)
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content["data"]["evaluated_items"] == 2
    assert content["problems"]["counts"] == {"missing file": 1, "unreadable file": 1, "unreadable row": 7}
    with pytest.raises(DataError, match="--strict accepts none"):
        benchmark(small_model(), task, tmp_path / "strict", Settings(("cosine",)), {}, workers=1, strict=True)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("vggss", "metadata/vggss.json", None, "does not exist; `python -m eval list` shows the expected layout"),
        ("vggss", "metadata/vggss.json", b"{}", "is not a JSON list of objects"),
        ("vggss", "metadata/vggss.json", b"[", "a JSON list is expected"),
        ("vggss", "metadata/vggss_test.csv", b"", "has no usable row for vggss"),
        ("flickr-soundnet", "Annotations/10000000000.xml", b"<root>", "XML is expected"),
        ("is3", "metadata/synthetic3240_bbox.json", b'[{"image": 3}]', "image is '3'; a file's name is expected"),
    ],
)
def test_unusable_data(name: str, file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    root = WRITERS[name](tmp_path, 1)
    (root / file).unlink()
    if content is not None:
        (root / file).write_bytes(content)
    with pytest.raises(DataError) as error:
        get_task(name)(root)
    assert message in str(error.value)


def test_negatives_have_nothing_to_find(tmp_path: Path) -> None:
    task = VggSsExtended(WRITERS["vggss-extended"](tmp_path / "data", 4))
    assert [bool(item.truth.any()) for item in task.items] == [True] * 4 + [False] * 2
    benchmark(small_model(), task, tmp_path / "run", Settings(("cosine",)), {}, workers=1)
    measures = RunFolder.open(tmp_path / "run").measures()
    values, _, confidences = measures.take("score cosine").T
    negative = np.array([False] * 4 + [True] * 2)
    (row,) = results(tmp_path / "run")
    assert row["average_precision"] == ss.localization_ap(values, confidences, negative)
    assert row["localization_accuracy"] == ss.success_rate(values[:4])


def test_negative_sounds(tmp_path: Path) -> None:
    task, model = VggSsNegatives(write_vggss(tmp_path / "data", 3)), small_model()
    case = task.load(task.items[0], Inputs.of(model))
    own, silence, noise, offscreen = (prompt for prompt in case.prompts if not isinstance(prompt, str))
    assert torch.equal(offscreen, task.load(task.items[1], Inputs.of(model)).prompts[0])  # the next of another class
    assert len(silence.unique()) == 2 < len(noise.unique())  # one value of silence, and one behind its end
    assert own.shape == noise.shape and silence.shape == own[:1].shape
    again = task.load(task.items[0], Inputs.of(model)).prompts[2]
    assert torch.equal(noise, again)
    benchmark(model, task, tmp_path / "run", Settings(("cosine",)), {}, workers=1)
    maps = RunFolder.open(tmp_path / "run").measures().take("maps cosine")
    threshold = np.float32(np.percentile(maps[:, 1:].max((-2, -1)), 75))
    rule = ss.RULES["ssl-alignment"]
    (row,) = results(tmp_path / "run")
    shares = [ss.predicted_share(mask) for mask in ss.upsample(maps[:, 1], rule) > threshold]
    assert row["auc_silence"] == pytest.approx(ss.negative_auc(np.array(shares)), abs=1e-12)
    masks = ss.upsample(maps[:, 0], rule) > threshold
    cious = [ss.ciou(mask, item.truth) for mask, item in zip(masks, task.items, strict=True)]
    assert row["auc"] == pytest.approx(ss.success_auc(np.nan_to_num(cious)), abs=1e-12)
    assert row["f_auc"] == pytest.approx(ss.harmonic_mean(row["auc"], row["auc_negative"]), abs=1e-12)


@pytest.mark.parametrize("name", ["vggss", "vpo-ms", "vggsound-duet"])
@pytest.mark.slow
def test_two_processes_and_resuming_give_the_bits_of_one(name: str, tmp_path: Path) -> None:
    same_bits(WRITERS[name](tmp_path / "data", 6), tmp_path, name)


def test_runs_can_be_compared(tmp_path: Path) -> None:
    task = Is3(write_interactive(tmp_path / "data", 6))
    for seed in (0, 1):
        benchmark(small_model(seed), task, tmp_path / str(seed), Settings(("cosine",)), {}, workers=1)
    told = compare_runs(tmp_path / "0", tmp_path / "1", None, None, 100, 0, False)
    assert "6 items of 3 images" in told and "| IIoU@0.5" in told
    measures = RunFolder.open(tmp_path / "0").measures()
    (row,) = Is3.summarize(measures)
    resampler = Is3.resampler(measures, row)
    assert all((values == 0).all() for values in bootstrap(resampler, resampler, 3, 100, 0).values())
