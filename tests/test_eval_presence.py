"""The benchmarks of presence and of refinement, on a few scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import avgrad
from avgrad.calibration import calibration_error, reliability, roc_auc
from avgrad.presence import Presence as Estimator
from avgrad.prompts import Prompt
from eval.__main__ import benchmark
from eval.runner import Settings
from eval.store import RunFolder
from eval.task import DataError
from eval.tasks.presence import Presence
from eval.tasks.refinement import Refinement


def test_presence(tmp_path: Path) -> None:
    """The figures are those of probabilities that `Presence` gives for each pair of image and prompt."""
    model, task = avgrad.load("mini"), Presence(limit=6)
    benchmark(model, task, tmp_path, Settings(("cosine",)), {}, workers=1)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [(row["prompt"], row["by"]) for row in rows] == [
        (kind, by) for kind in ("sound", "speech", "text") for by in ("calibration", "reference")
    ]
    measures = RunFolder.open(tmp_path).measures()
    images, prompts = (torch.from_numpy(measures.take(name)) for name in ("image", "prompts"))
    classes = measures.take("classes")
    for row in rows:
        estimate = Estimator(model, "auto" if row["by"] == "calibration" else "reference")
        modality = {"sound": "audio", "speech": "speech", "text": "text"}[row["prompt"]]
        own = prompts[:, ["sound", "speech", "text"].index(row["prompt"])][classes >= 0]
        asked = [Prompt(embedding, "", modality) for embedding in own]
        found = estimate(images, asked, images @ own.T).flatten()
        shown = [[number in scene for number in classes[classes >= 0]] for scene in classes.tolist()]
        present = torch.tensor(shown).flatten()
        assert row["roc_auc"] == pytest.approx(roc_auc(found, present), abs=1e-6)
        assert row["calibration_error"] == pytest.approx(calibration_error(reliability(found, present)), abs=1e-3)


def test_refinement(tmp_path: Path) -> None:
    model, task = avgrad.load("mini"), Refinement(limit=4, refinements="guided")
    benchmark(model, task, tmp_path, Settings(("legrad", "cosine")), {}, workers=1)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [(row["method"], row["refinement"]) for row in rows] == [
        (method, name) for method in ("legrad", "cosine") for name in ("none", "guided")
    ]
    plain, guided = rows[:2]
    assert guided["mean_iou"] > plain["mean_iou"] + 0.03 and plain["least_gain"] == 0
    gains = [after["iou"] - before["iou"] for before, after in zip(plain["details"], guided["details"], strict=True)]
    assert guided["least_gain"] == pytest.approx(min(gains), abs=1e-9)
    measures = RunFolder.open(tmp_path).measures()
    assert measures.take("map legrad, guided").shape == (4, 1, 4, 128, 128)
    weights = np.ones((1, len(measures)))
    assert Refinement.resampler(measures, Refinement.summarize(measures)[1])(weights)["mean_iou"][0] == pytest.approx(
        guided["mean_iou"], abs=5e-3
    )
    assert len(list(task.examples(measures, Refinement.summarize(measures)[0]))) == 4
    with pytest.raises(DataError, match=r"refinements='snake'; some of guided\+grabcut\+random_walker\+sam2"):
        Refinement(refinements="snake")
