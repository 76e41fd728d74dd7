"""Perturbation against the original script (golden/benchmarks/README.md, section H)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.files import Golden

from eval.metrics import perturbation
from eval.metrics.segmentation import scaled

Array = np.ndarray


@pytest.fixture(scope="module")
def values(golden: Golden) -> dict[str, Array]:
    with np.load(golden("benchmarks/perturbation.npz")) as arrays:
        return dict(arrays)


def classify(values: dict[str, Array], images: torch.Tensor) -> Array:
    """The golden file's classifier."""
    conv, bias, fc, fc_bias = (
        torch.from_numpy(values[k]) for k in ("conv_weight", "conv_bias", "fc_weight", "fc_bias")
    )
    features = F.conv2d((images - 0.5) / 0.5, conv, bias, stride=8).relu().mean((-2, -1))
    return (features @ fc.T + fc_bias).numpy()


@pytest.mark.parametrize("relevance", ["top", "target", "full"])
@pytest.mark.parametrize("positive", [True, False])
def test_perturbation(values: dict[str, Array], relevance: str, positive: bool) -> None:
    prefix = f"{relevance}_{'pos' if positive else 'neg'}"
    if relevance == "full":
        maps = values["vis_full_rank"].astype(np.float32) / 50176
    else:
        maps = np.stack([scaled(m) for m in values[f"vis14_{relevance}"]])
        if relevance == "top":
            np.testing.assert_allclose(maps[:, 100], values["vis224_top_row100"], atol=1e-6)
    images = torch.from_numpy(values["images_u8"][: len(maps)]).float() / 255
    target = values["target"][: len(maps)]
    np.testing.assert_allclose(classify(values, images), values["unperturbed_logits"][: len(maps)], atol=1e-4)
    unperturbed = perturbation.hits(values["unperturbed_logits"][: len(maps)], target)
    assert unperturbed.tolist() == values[f"{prefix}_model_hits"].astype(bool).tolist()
    assert [int(50176 * step) for step in perturbation.STEPS] == values["n_masked"].tolist()
    perturbed = []
    for step, expected in zip(perturbation.STEPS, values[f"{prefix}_logits"], strict=True):
        masked = perturbation.remove_pixels(images, torch.from_numpy(maps), float(step), positive)
        logits = classify(values, masked)
        if relevance == "full":  # without ties, the pixels are the same ones
            np.testing.assert_allclose(logits, expected, atol=1e-4)
        perturbed.append(perturbation.hits(logits, target))
    assert np.array_equal(np.array(perturbed), values[f"{prefix}_perturbations_hits"].astype(bool))
    figures = perturbation.perturbation_figures(unperturbed, np.array(perturbed))
    np.testing.assert_allclose(np.mean(perturbed, axis=1), values[f"{prefix}_accuracy"], atol=1e-12)
    for ours, theirs in (
        ("accuracy", "accuracy0"),
        ("auc", "auc_0_90"),
        ("auc_normalized", "auc_0_90_normalised"),
        ("auc_from_10", "auc_10_90"),
        ("auc_from_10_normalized", "auc_10_90_normalised"),
        ("mean_accuracy", "mean_9"),
    ):
        assert figures[ours] == pytest.approx(float(values[f"{prefix}_{theirs}"]), abs=1e-9), ours
