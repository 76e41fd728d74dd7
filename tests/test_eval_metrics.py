"""The protocol's metrics, against the original evaluation code and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.files import Golden
from torchmetrics.functional.classification import binary_average_precision

from eval.metrics.prompted_segmentation import RECALL_LEVELS, prompted_segmentation, score_class, score_parts


@pytest.fixture(scope="module")
def denseav(golden: Golden) -> dict[str, np.ndarray]:
    with np.load(golden("denseav_metrics.npz")) as arrays:
        return dict(arrays)


def heatmaps_over(time_mask: torch.Tensor, similarity: torch.Tensor, side: int) -> torch.Tensor:
    """Patch similarity averaged over the time of a mask, normalized over the whole set, upsampled."""
    maps = torch.einsum("bhwt,bt->bhw", similarity, time_mask) / time_mask.sum(-1)[:, None, None]
    maps = (maps - maps.min()) / (maps.max() - maps.min())
    return F.interpolate(maps[:, None], (side, side), mode="bilinear")[:, 0]


def word_time(denseav: dict[str, np.ndarray], steps: int) -> torch.Tensor:
    """The time steps of a word with 0.2 s on each side; in single precision, as the original's rounding has it."""
    timing = torch.tensor(denseav["timing"], dtype=torch.float32) + torch.tensor([-0.2, 0.2])
    seconds = torch.tensor(denseav["total_seconds"], dtype=torch.float32)[:, None]
    bounds = steps * (timing / seconds)
    step = torch.arange(steps)
    return ((step >= bounds[:, :1].floor()) & (step < bounds[:, 1:].ceil())).float()


@pytest.mark.parametrize("protocol", ["basic", "advanced"])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_agrees_with_the_original_evaluation(denseav: dict[str, np.ndarray], protocol: str, as_tensor: bool) -> None:
    similarity = torch.tensor(denseav["patch_similarity"])
    time = torch.tensor(denseav["audio_mask"]) if protocol == "basic" else word_time(denseav, similarity.shape[-1])
    heatmaps = heatmaps_over(time, similarity, denseav["semseg"].shape[-1])
    if protocol == "basic":
        assert np.abs(heatmaps.numpy() - denseav["heatmaps_dataset_minmax"]).max() < 1e-6
    masks = torch.tensor(denseav["semseg"] == denseav["class_ids"][:, None, None])
    ids = torch.tensor(denseav["class_ids"])
    arguments = (heatmaps, masks, ids) if as_tensor else (heatmaps.numpy(), masks.numpy(), ids.numpy())
    score = prompted_segmentation(*arguments)
    assert list(score.classes) == list(denseav["classes"])
    for measure, golden_name in (("average_precision", "ap"), ("iou", "iou")):
        ours = np.array([getattr(c, measure) for c in score.classes.values()])
        assert np.abs(ours - denseav[f"{protocol}_{golden_name}"]).max() < 1e-6
    assert score.mean_average_precision == pytest.approx(denseav[f"{protocol}_ap"].mean(), abs=1e-6)
    assert score.mean_iou == pytest.approx(denseav[f"{protocol}_iou"].mean(), abs=1e-6)


@pytest.mark.parametrize("levels", [2, 7, 1000, 10**9])
def test_average_precision_agrees_with_torchmetrics_however_many_ties(levels: int) -> None:
    generator = np.random.default_rng(levels)
    heatmaps = (generator.integers(0, levels, (3, 40, 50)) / levels).astype(np.float32)
    masks = generator.random((3, 40, 50)) < 0.2 + 0.5 * heatmaps
    expected = binary_average_precision(torch.tensor(heatmaps).flatten(), torch.tensor(masks).flatten().int())
    assert score_class(heatmaps, masks).average_precision == pytest.approx(float(expected), abs=2e-6)


def test_the_range_of_the_values_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    heatmaps = generator.integers(0, 256, (4, 30, 30)).astype(np.float32) / 256
    masks = generator.random((4, 30, 30)) < heatmaps
    plain, stretched = score_class(heatmaps, masks), score_class(heatmaps * 1024 - 512, masks)
    assert plain.average_precision == stretched.average_precision
    assert plain.iou == pytest.approx(stretched.iou, abs=1e-12)


def test_precision_recall_curve() -> None:
    heatmaps = np.array([[[0.9, 0.8, 0.7, 0.6]]], dtype=np.float32)
    score = score_class(heatmaps, np.array([[[True, False, True, False]]]))
    assert score.precision[RECALL_LEVELS <= 0.5] == pytest.approx(1.0)
    assert score.precision[RECALL_LEVELS > 0.5] == pytest.approx(2 / 3)


def test_a_constant_heatmap_predicts_nothing() -> None:
    masks = np.array([[[True, False], [False, False]]])
    score = score_class(np.zeros((1, 2, 2), dtype=np.float32), masks)
    assert (score.average_precision, score.iou) == (0.25, 0.0)


def test_a_class_without_pixels_is_left_out_of_the_means() -> None:
    heatmaps = np.array([[[0.1, 0.9]], [[0.3, 0.4]]])
    masks = np.array([[[False, True]], [[False, False]]])
    score = prompted_segmentation(heatmaps, masks, [1, 2])
    assert np.isnan(score.classes[2].average_precision) and np.isnan(score.classes[2].iou)
    assert (score.mean_average_precision, score.mean_iou) == (1.0, 1.0)
    assert np.isfinite(score.precision).all()


@pytest.mark.parametrize(
    ("heatmaps", "masks", "class_ids", "message"),
    [
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 4), bool), [1, 1], "same \\[N, H, W\\]"),
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), [1, 1], "expected bool"),
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool), [1], "one integer for each"),
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool), [1.0, 1.0], "one integer for each"),
        (np.full((1, 3, 3), np.nan), np.zeros((1, 3, 3), bool), [1], "not finite"),
    ],
)
def test_wrong_arguments_are_named(heatmaps, masks, class_ids, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        prompted_segmentation(heatmaps, masks, class_ids)


@pytest.mark.parametrize("levels", [0, 6])
@pytest.mark.parametrize("shift", [0.0, -0.5])
def test_parts_give_the_score_of_the_whole(levels: int, shift: float) -> None:
    generator = np.random.default_rng(11)
    masks = generator.random((13, 20, 20)) < 0.2
    maps = (masks * 0.4 + generator.random(masks.shape) + shift).astype(np.float32)
    if levels:
        maps = np.round(maps * levels) / np.float32(levels)  # ties, and -0.0
    whole = score_class(maps, masks)
    for max_pixels in (100, 1500, 10_000):
        parts = score_parts(lambda: ((maps[i : i + 3], masks[i : i + 3]) for i in range(0, 13, 3)), max_pixels)
        assert parts.average_precision == pytest.approx(whole.average_precision, abs=1e-12)
        assert (parts.iou, parts.threshold, parts.num_images) == (whole.iou, whole.threshold, 13)
        np.testing.assert_array_equal(parts.precision, whole.precision)
    nothing = score_parts(lambda: iter([(maps, masks & False)]), 100)
    assert np.isnan(nothing.average_precision) and nothing.num_images == 13
    with pytest.raises(ValueError, match="not finite"):
        score_parts(lambda: iter([(maps * np.float32("inf"), masks)]), 100)
