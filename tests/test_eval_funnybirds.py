"""FunnyBirds' protocols against the original framework (golden/benchmarks/README.md, section I)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.files import Golden

from eval.metrics import funnybirds as fb

Array = np.ndarray


@pytest.fixture(scope="module")
def values(golden: Golden) -> dict[str, Array]:
    with np.load(golden("benchmarks/funnybirds.npz")) as arrays:
        return dict(arrays)


def kept_parts(name: str) -> frozenset[str]:
    return frozenset(name.removeprefix("body_").removesuffix(".png").split("_")) - {""}


@pytest.fixture(scope="module")
def birds(values: dict[str, Array]) -> list[fb.Bird]:
    # the file's order of parts is that of parts.json
    order = [values["part_names"].tolist().index(part) for part in fb.PARTS]
    assert sorted(order) == list(range(5))
    removed = [frozenset(fb.PARTS) - kept_parts(str(name)) for name in values["intervention_names"]]
    found = []
    for i, count in enumerate(values["bg_counts"]):
        explanations = values["attributions16"][i].repeat(16, 1).repeat(16, 2)
        found.append(
            fb.Bird(
                label=int(values["labels"][i]),
                logits=values["logits"][i],
                without=dict(zip(removed, values["intervention_logits"][i], strict=True)),
                without_background=values["bg_intervention_logits"][i, :count],
                importance=fb.part_importances(explanations, values["part_maps"][i]),
                background_importance=fb.background_importances(explanations, values["part_maps"][i], int(count)),
                total=explanations.sum((1, 2), dtype=np.float64),
            )
        )
    return found


@pytest.fixture(scope="module")
def class_parts(values: dict[str, Array]) -> Array:
    return values["class_parts"][:, [values["part_names"].tolist().index(part) for part in fb.PARTS]]


def close(found: object, expected: Array, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=float), expected, rtol=0, atol=tolerance)


def test_logits_are_those_of_the_images(values: dict[str, Array]) -> None:
    """The file's interventions and its model belong together, so a whole run can be tested with them."""
    conv, bias, fc, fc_bias = (
        torch.from_numpy(values[k]) for k in ("conv_weight", "conv_bias", "fc_weight", "fc_bias")
    )
    images = torch.from_numpy(values["interventions"][0]).permute(0, 3, 1, 2).float() / 255
    logits = F.conv2d(images, conv, bias, stride=8).relu().mean((-2, -1)) @ fc.T + fc_bias
    close(logits, values["intervention_logits"][0], 1e-4)


def test_importances(values: dict[str, Array], birds: list[fb.Bird]) -> None:
    order = [values["part_names"].tolist().index(part) for part in fb.PARTS]
    close([bird.importance for bird in birds], values["part_importance"][..., order])
    close([bird.total for bird in birds], values["attribution_total"])
    for bird, expected in zip(birds, values["bg_importance"], strict=True):
        close(bird.background_importance, expected[:, : bird.background_importance.shape[1]])


def test_minimal_sufficient_sets(values: dict[str, Array], class_parts: Array) -> None:
    names = values["part_names"]
    found = fb.minimal_sufficient_sets(class_parts)
    for own, rows, count in zip(found, values["min_sufficient_sets"], values["min_sufficient_counts"], strict=True):
        expected = {frozenset(names[row.astype(bool)].tolist()) for row in rows[:count]}
        assert set(own) == expected or not count  # the original leaves out the last class
    assert values["min_sufficient_counts"][-1] == 0 < len(found[-1])


def test_protocols(values: dict[str, Array], birds: list[fb.Bird], class_parts: Array) -> None:
    sets = fb.minimal_sufficient_sets(class_parts)
    close(fb.THRESHOLDS, values["p_thresholds"], 1e-12)
    close([fb.csdc(birds, [*sets[:-1], []], t) for t in fb.THRESHOLDS], values["csdc_per_threshold"])
    close([fb.preservation_check(birds, t) for t in fb.THRESHOLDS], values["pc_per_threshold"])
    close([fb.deletion_check(birds, t) for t in fb.THRESHOLDS], values["dc_per_threshold"])
    close([fb.distractibility(birds, t) for t in fb.THRESHOLDS], values["d_per_threshold"])
    close(fb.single_deletion(birds), values["sd"])
    close(fb.background_independence(birds), values["bi"])
    close(fb.target_sensitivity(birds, class_parts), values["ts"])


def test_figures(values: dict[str, Array], birds: list[fb.Bird], class_parts: Array) -> None:
    figures = fb.funnybirds_figures(birds, class_parts)
    main = dict(zip(values["main_names"].tolist(), values["main_values"].tolist(), strict=True))
    close(figures["threshold_as_published"], values["main_best_threshold"])
    for ours, theirs in (
        ("accuracy", "accuracy"),
        ("csdc_as_published", "csdc"),
        ("preservation_check_as_published", "pc"),
        ("deletion_check_as_published", "dc"),
        ("distractibility_as_published", "distractibility"),
        ("background_independence", "background_independence"),
        ("single_deletion", "sd"),
        ("target_sensitivity", "ts"),
    ):
        assert figures[ours] == pytest.approx(main[theirs], abs=1e-5), ours
    last = [bird for bird in birds if bird.label == len(class_parts) - 1]
    assert last and fb.minimal_sufficient_sets(class_parts)[-1]
