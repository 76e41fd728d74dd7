"""ImageNet-Segmentation against the original script (golden/benchmarks/README.md, section G)."""

from __future__ import annotations

import numpy as np
import pytest
from golden.files import Golden
from PIL import Image

from eval.metrics import segmentation

Array = np.ndarray


@pytest.fixture(scope="module")
def values(golden: Golden) -> dict[str, Array]:
    with np.load(golden("benchmarks/imagenet_segmentation.npz")) as arrays:
        return dict(arrays)


def truths(values: dict[str, Array]) -> list[Array]:
    """The stored labels, resized as the original does."""
    found = []
    for item, (_, width) in enumerate(values["label_sizes"]):
        stored = np.unpackbits(values[f"label_raw_bits_{item:02d}"], axis=-1)[:, :width]
        resized = Image.fromarray(stored * 255).resize((224, 224), Image.Resampling.NEAREST)
        found.append(np.asarray(resized) > 0)
    return found


def close(found: object, expected: Array, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=float), expected, rtol=0, atol=tolerance)


def test_labels_and_maps(values: dict[str, Array]) -> None:
    resized = np.unpackbits(values["label_resized_bits"], axis=-1)[..., :224].astype(bool)
    assert all(np.array_equal(a, b) for a, b in zip(truths(values), resized, strict=True))
    maps = [segmentation.scaled(relevance) for relevance in values["r14_maps"]]
    close(maps[0], values["r14_res224_item0"])
    close([m[100] for m in maps], values["r14_res224_row100"])
    close([m.mean() for m in maps], values["r14_threshold"])


@pytest.mark.parametrize("size", ["r14", "r224", "const"])
def test_figures(values: dict[str, Array], size: str) -> None:
    labels = truths(values)
    if size == "r14":
        pairs = list(zip(values["r14_maps"], labels, strict=True))
    elif size == "r224":
        pairs = [(m / 256, labels[i]) for m, i in zip(values["r224_maps_x256"], values["r224_items"], strict=True)]
    else:
        pairs = [(np.zeros((14, 14)), labels[int(values["const_item"])])]
    scores = [segmentation.score_foreground(segmentation.scaled(m), truth) for m, truth in pairs]
    predicted = np.unpackbits(values[f"{size}_pred_bits"], axis=-1)[..., :224].astype(bool)
    for (relevance, _), expected in zip(pairs, predicted, strict=True):
        assert (segmentation.foreground(segmentation.scaled(relevance)) != expected).sum() <= 2
    close([s.correct for s in scores], values[f"{size}_correct"], 2)
    assert [s.labeled for s in scores] == values[f"{size}_labeled"].tolist()
    close([s.intersection for s in scores], values[f"{size}_inter"], 2)
    close([s.union for s in scores], values[f"{size}_union"], 2)
    close([s.average_precision_as_published for s in scores], values[f"{size}_ap"], 1e-4)
    close([s.f1_as_published for s in scores], values[f"{size}_f1_rowmean"], 1e-4)
    figures = segmentation.foreground_figures(scores)
    close(figures["pixel_accuracy"], values[f"{size}_pixAcc"], 1e-4)
    close(figures["mean_iou"], values[f"{size}_mIoU"], 1e-4)
    close([figures["iou_background"], figures["iou_foreground"]], values[f"{size}_IoU"], 1e-4)
    close(figures["mean_average_precision_as_published"], values[f"{size}_mAP"], 1e-4)
    close(figures["mean_f1_as_published"], values[f"{size}_mF1"], 1e-4)


def test_foreground_alone() -> None:
    """A map that is right has AP and F1 1 for the foreground; one that is wrong has not, and rows do not matter."""
    truth = np.zeros((4, 4), dtype=bool)
    truth[1, 1:3] = True
    right = segmentation.score_foreground(truth.astype(np.float32), truth)
    assert (right.average_precision, right.f1, right.f1_as_published) == (1.0, 1.0, 0.25)
    wrong = segmentation.score_foreground((~truth).astype(np.float32), truth)
    assert (wrong.average_precision, wrong.f1) == (2 / 16, 0.0)
