"""OpenImages V7's point labels, end to end on small data in their layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_layouts import write_openimages
from PIL import Image
from test_eval_runner import same_bits
from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex

import avgrad
from avgrad.engine.attribute import min_max, upsample
from eval.__main__ import benchmark
from eval.metrics.points import point_counts, point_iou
from eval.runner import Settings
from eval.store import RunFolder
from eval.task import DataError
from eval.tasks.openimages_v7 import DESCRIPTIONS, POINTS, OpenImagesV7


@pytest.fixture(scope="module")
def model() -> Any:
    return avgrad.load("mini", towers=("vision", "text"))


def run(model: Any, task: OpenImagesV7, out: Path) -> dict[str, Any]:
    benchmark(model, task, out, Settings(("legrad", "cosine"), batch_size=2), {}, workers=1)
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def test_point_iou_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 40):
        heatmap, points = rng.random((30, 50)), rng.random((size, 2))
        positive = rng.random(size) < 0.5
        predicted = np.array([heatmap[int(30 * y), int(50 * x)] > 0.5 for x, y in points])
        counts = point_counts(heatmap, points, positive)
        assert counts.sum() == size
        found = point_iou(counts)
        pair = torch.from_numpy(predicted), torch.from_numpy(positive)
        if (predicted | positive).any():
            assert found[0] == pytest.approx(float(BinaryJaccardIndex()(*pair)), abs=1e-6)
            if not (predicted & positive).all():
                both = float(MulticlassJaccardIndex(2)(*(values.long() for values in pair)))
                assert found[1] == pytest.approx(both, abs=1e-6)


def test_points_at_the_edges() -> None:
    heatmap = np.zeros((4, 4))
    heatmap[3, 3] = heatmap[0, 3] = 1
    points = np.array([[1.0, 1.0], [0.999, 0.0], [0.0, 1.0]])
    assert point_counts(heatmap, points, np.array([True, False, True])).tolist() == [1, 1, 1, 0]
    # no point of the background in truth or prediction
    assert point_iou(np.array([3, 0, 0, 0])).tolist() == [1.0, 1.0]
    assert np.isnan(point_iou(np.zeros(4))).all()


def test_figures_are_those_of_the_library(tmp_path: Path, model: Any) -> None:
    """The whole way again by the public face, point by point."""
    task = OpenImagesV7(write_openimages(tmp_path / "data", 5))
    assert (task.num_rows, len(task.items), task.problems) == (5, 5, [])
    rows = run(model, task, tmp_path / "run")["results"]
    with open(tmp_path / "data" / POINTS, newline="") as file:
        points = list(csv.DictReader(file))
    names = {"/m/0bt9lr": "Dog", "/m/026t6": "Drum", "/m/0342h": "Guitar"}
    counts: dict[tuple[str, str], Any] = {}
    for image in dict.fromkeys(point["ImageId"] for point in points):
        square = Image.open(tmp_path / "data" / "validation" / f"{image}.jpg").convert("RGB")
        pixels = model.preprocess(square.resize(2 * (model.preprocess.size,), Image.Resampling.BICUBIC))[None]
        for label in dict.fromkeys(point["Label"] for point in points if point["ImageId"] == image):
            prompt = model.encode_text([f"a photo of a {names[label]}."])
            raw = avgrad.attribute(model, pixels, prompt, per_layer=True).sum(2)
            heatmap = min_max(upsample(raw, (224, 224)))[0, 0]
            own = [
                p for p in points if (p["ImageId"], p["Label"]) == (image, label) and p["EstimatedYesNo"] != "unsure"
            ]
            found = np.zeros(4, dtype=int)
            for point in own:
                hit = heatmap[int(float(point["Y"]) * 224), int(float(point["X"]) * 224)] > 0.5
                found[(0 if hit else 2) if point["EstimatedYesNo"] == "yes" else (1 if hit else 3)] += 1
            counts[image, label] = found
    by_class = [sum(c for (_, own), c in counts.items() if own == label) for label in ("/m/0bt9lr", "/m/026t6")]
    for row, values in ((rows[0], by_class), (rows[1], list(counts.values()))):
        expected = np.array([point_iou(value) for value in values]).mean(axis=0)
        assert (row["p_miou"], row["p_miou_with_background"]) == pytest.approx(tuple(expected), abs=1e-12)
        assert 0 < row["p_miou"] < row["p_miou_with_background"] < 1
    assert [row["mean over"] for row in rows] == ["classes", "images"] * 2
    assert [part["class_name"] for part in rows[0]["details"]] == ["Dog", "Drum"]
    measures = RunFolder.open(tmp_path / "run").measures()
    for row in task.summarize(measures):
        for figure, (value,) in task.resampler(measures, row)(np.ones((1, 5))).items():
            assert value == pytest.approx(row.figures[figure], abs=1e-12), figure
        # one image twice and no other
        drawn = task.resampler(measures, row)(np.array([[0.0, 2, 0, 0, 0]]))
        one = [task.summarize(measures.subset(np.array([1])))]
        (same,) = [r for r in one[0] if (r.method, r.variant) == (row.method, row.variant)]
        assert drawn["p_miou"][0] == pytest.approx(same.figures["p_miou"], abs=1e-12)
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/jpeg;base64,") == 5 * 4


@pytest.mark.slow
def test_two_processes_and_resuming_give_the_bits_of_one(tmp_path: Path) -> None:
    same_bits(write_openimages(tmp_path / "data", 5), tmp_path, "openimages-v7")


def test_bad_data_are_reported(tmp_path: Path, model: Any) -> None:
    root = write_openimages(tmp_path / "data", 4)
    table = root / POINTS
    header, first, *others = table.read_text().splitlines()
    image, x, y, label, *_ = first.split(",")
    bad = [
        f"{image},1.5,{y},{label},yes",
        f"{image},{x},nan,{label},yes",
        f"{image},{x},{y},{label},maybe",
        f"{image},{x},{y},/m/unknown,yes",
        f"../{image},{x},{y},{label},yes",
        image,
        first,
        f"{image},{x},{y},/m/unknown,yes,cif,1,0,0,a striped dog",
        f"nowhere,{x},{y},{label},yes",
        f"negative,{x},{y},{label},no",
    ]
    table.write_text("\n".join([header, first, *bad, *others]) + "\n")
    (root / "validation" / f"{2:016x}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (root / "validation" / f"{3:016x}.jpg").unlink()
    task = OpenImagesV7(root)
    kinds = [(p.row, p.kind) for p in task.problems]
    assert kinds[:8] == [
        *((row, "unreadable row") for row in range(2, 8)),
        (8, "duplicate row"),
        (10, "missing file"),
    ]
    assert [kind for _, kind in kinds[8:]] == ["missing file"]
    assert task.problems[6].message == "the same as row 1; it is left out"
    assert task.items[0].classes == (("/m/0bt9lr", "Dog"), ("/m/unknown", "a striped dog"))
    content = run(model, task, tmp_path / "run")
    assert content["data"]["evaluated_items"] == 2
    assert content["problems"]["counts"]["unreadable file"] == 1
    (root / DESCRIPTIONS).write_text("/m/0bt9lr,Dog\n/m/026t6,Drum\n")  # a header is not needed
    assert OpenImagesV7(root).items[0].classes == task.items[0].classes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (POINTS, None, "does not exist"),
        (POINTS, "ImageId,X,Y\n", "has no column Label"),
        (POINTS, "", "has no column ImageId"),
        (POINTS, "ImageId,X,Y,Label,EstimatedYesNo,TextLabel\n", "has no usable row for openimages-v7"),
        (DESCRIPTIONS, None, "does not exist"),
        (DESCRIPTIONS, "LabelName,DisplayName\n", "has no usable row for openimages-v7"),
    ],
)
def test_unusable_data(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    root = write_openimages(tmp_path, 1)
    (root / name).unlink()
    if content is not None:
        (root / name).write_text(content)
    with pytest.raises(DataError, match=message):
        OpenImagesV7(root)
