"""AVSBench-semantic, end to end on small data in its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from eval_layouts import AVSS_CLASSES, write_avss
from PIL import Image
from safetensors.torch import save_model
from test_eval_runner import same_bits
from typer.testing import CliRunner

import avgrad
from avgrad.encoders.text import encode_labels
from avgrad.engine.attribute import min_max, upsample
from eval.__main__ import app, benchmark
from eval.metrics import avsbench as metric
from eval.runner import Settings
from eval.store import RunFolder
from eval.task import DataError, Inputs
from eval.tasks.avsbench_avss import AvsBenchAvss


@pytest.fixture(scope="module")
def model() -> Any:
    return avgrad.load("mini")


def run(model: Any, task: AvsBenchAvss, out: Path) -> dict[str, Any]:
    benchmark(model, task, out, Settings(("legrad", "cosine"), batch_size=8), {}, workers=1)
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def test_figures_are_those_of_the_library(tmp_path: Path, model: Any) -> None:
    """The whole way again by the public face, frame by frame, with whole label maps."""
    task = AvsBenchAvss(write_avss(tmp_path / "data", ("v1s", "v1m")))
    assert (task.num_rows, len(task.items), task.problems) == (10, 10, [])
    legrad, cosine = run(model, task, tmp_path / "run")["results"]
    texts = encode_labels(model, ["dog", "church bell", "guitar"], "a photo of a {}.")
    counts, binary, correct = [], [], []
    for item in task.items:
        case = task.load(item, Inputs.of(model))
        stored = Image.open(tmp_path / "data" / item.mask).resize((224, 224), Image.Resampling.NEAREST)
        truth = (np.asarray(stored)[:, :, None] == metric.palette(4)).all(-1).argmax(-1)
        assert np.array_equal(truth, case.truth["labels"])
        sound = model.encode_audio([case.prompts[0]])[0]
        raw = avgrad.attribute(model, case.pixels[None], sound[None], per_layer=True).sum(2)
        heatmap = min_max(upsample(raw, (224, 224)))[0, 0].numpy()
        chosen = 1 + int((texts @ sound).argmax())
        counts.append(metric.semantic_counts(np.where(heatmap > 0.5, chosen, 0), truth, 4))
        binary.append(metric.frame_iou(heatmap > 0.5, truth != 0))
        correct.append((truth == chosen).any())
    for figure, value in metric.semantic_figures(metric.semantic_sums(np.array(counts)), background=0).items():
        assert legrad[figure] == pytest.approx(value, abs=1e-4), figure
    assert legrad["binary_iou"] == pytest.approx(np.mean(binary), abs=1e-4)
    assert legrad["class_accuracy"] == pytest.approx(np.mean(correct), abs=1e-12)
    assert cosine["mean_iou"] != legrad["mean_iou"]
    measures = RunFolder.open(tmp_path / "run").measures()
    for row in task.summarize(measures):
        resampled = task.resampler(measures, row)(np.ones((1, 2)))
        assert set(resampled) == set(task.columns)
        for figure, (value,) in resampled.items():
            assert value == pytest.approx(row.figures[figure], abs=1e-12), figure
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/jpeg;base64,") == 8 * 4


@pytest.mark.slow
def test_two_processes_and_resuming_give_the_bits_of_one(tmp_path: Path) -> None:
    data = write_avss(tmp_path / "data", ("v1s",))
    same_bits(data, tmp_path, "avsbench-avss")


def test_the_palette_is_that_of_pascal_voc() -> None:
    colors = metric.palette(71).tolist()
    assert colors[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colors[8] == [64, 0, 0] and colors[70] == [32, 128, 128] and len({tuple(color) for color in colors}) == 71


def test_bad_data_are_reported(tmp_path: Path, model: Any) -> None:
    root = write_avss(tmp_path / "data", ("v1s", "v1m", "v2"))
    table = root / "metadata.csv"
    table.write_text(table.read_text() + "x,video0,0,v3,test\nx,../video0,0,v1s,test\nx,video0,0,v1s,test\n")
    (root / "v1m" / "video1" / "frames" / "2.jpg").unlink()
    (root / "v1m" / "video1" / "labels_rgb" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    Image.new("RGB", (120, 90), (1, 2, 3)).save(root / "v2" / "video2" / "labels_rgb" / "7.png")
    task = AvsBenchAvss(root)
    assert [(p.row, p.kind) for p in task.problems] == [
        (3, "missing file"),
        (5, "unreadable row"),
        *[(6, "unreadable row")] * 5,
        *[(7, "duplicate row")] * 5,
    ]
    content = run(model, task, tmp_path / "run")
    assert content["data"]["evaluated_items"] == 20 - 3
    messages = [p["message"] for p in content["problems"]["rows"] if p["kind"] == "unreadable file"]
    assert len(messages) == 2
    assert "labels_rgb/7.png holds the color [1, 2, 3]; those of 4 classes are expected" in messages[1]


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"background": 0, "dog": 2}', '{"background": 0}', '{"a": 0, "b": "1"}']
)
def test_unusable_lists_of_classes(content: str, tmp_path: Path) -> None:
    root = write_avss(tmp_path, ("v1s",))
    (root / "label2idx.json").write_text(content)
    with pytest.raises(DataError, match="a JSON object that numbers 2 to 256 classes"):
        AvsBenchAvss(root)


def test_the_background_may_be_any_class(tmp_path: Path) -> None:
    root = write_avss(tmp_path, ("v1s",))
    before = AvsBenchAvss(root)
    assert (before.background, before.class_names[2]) == (0, "church bell")
    (root / "label2idx.json").write_text(json.dumps({name: 3 - index for index, name in enumerate(AVSS_CLASSES)}))
    after = AvsBenchAvss(root)
    assert after.background == 3 and after.fingerprint != before.fingerprint


def test_a_model_without_sounds_is_refused(tmp_path: Path) -> None:
    root = write_avss(tmp_path / "data", ("v1s",))
    arguments = ["avsbench-avss", "--data", str(root), "--out", str(tmp_path / "run")]
    checkpoint = tmp_path / "weights.safetensors"
    save_model(timm.create_model("vit_tiny_patch16_224"), checkpoint)
    result = CliRunner().invoke(
        app, [*arguments, "--model", "timm:vit_tiny_patch16_224", "--checkpoint", str(checkpoint)]
    )
    assert result.exit_code == 1
    assert "timm:vit_tiny_patch16_224 takes text prompts; avsbench-avss needs audio" in result.output
