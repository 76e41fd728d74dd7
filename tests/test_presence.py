"""Presence: probabilities from calibrations and from the reference, and calibrations that are fitted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from scipy.stats import norm

import avgrad
from avgrad import InputError, Localization, Localizer, UnsupportedModelError
from avgrad.calibration import calibration_error, reliability, roc_auc
from avgrad.cli import main
from avgrad.models.imagebind import ImageBind
from avgrad.models.model import Calibration
from avgrad.models.registry import load
from avgrad.presence import (
    calibration_path,
    exceptional,
    fit_calibration,
    fitted_calibrations,
    write_calibrations,
)
from avgrad.scenes import CLASSES, draw_scene, mix_sound, scene_rng


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AVGRAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def mini() -> ImageBind:
    model = load("mini")
    assert isinstance(model, ImageBind)
    return model


def scene(*classes: int) -> Image.Image:
    return Image.fromarray(draw_scene(scene_rng("test presence", 0, 0), 128, classes=list(classes)).image)


def sound(object_class: int) -> tuple[np.ndarray, int]:
    return mix_sound(object_class, scene_rng("test presence", 1, object_class), 2.5), 16_000


# ------------------------------------------------------------------ in results


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_present_and_absent(mode: str) -> None:
    localizer = Localizer(mini(), presence=mode)  # type: ignore[arg-type]
    localizer.set_image(scene(13, 0))
    result = localizer.localize(text=["a dog", "a bell", "a train"], audio=[sound(13), sound(9)])
    assert result.presence is not None and result.presence.dtype == torch.float32
    present = dict(zip([prompt.label for prompt in result.prompts], (result.presence > 0.5).tolist(), strict=True))
    assert present == {"audio 1": True, "audio 2": False, "a dog": True, "a bell": True, "a train": False}
    again = [r.presence for r in localizer.stream([scene(13, 0)] * 2, prompts=result.prompts)]
    for own in again:
        assert own is not None
        torch.testing.assert_close(own, result.presence, rtol=0, atol=1e-5)


def test_the_models_own_calibration() -> None:
    model = mini()
    result = avgrad.localize(scene(13), model=model, text="a dog", prompts=[])
    assert model.calibration is not None and result.presence is not None
    assert float(result.presence[0]) == pytest.approx(model.calibration.probability(float(result.scores[0])), abs=1e-6)
    assert avgrad.localize(scene(13), model=model, text="a dog", presence=None).presence is None


def test_the_reference_against_its_formula() -> None:
    model = mini()
    localizer = Localizer(model, presence="reference")
    localizer.set_image(scene(13, 3))
    result = localizer.localize(text="a dog", audio=sound(13))
    image = model.encode_image(model.preprocess.whole(scene(13, 3))[None])[0].double()
    assert localizer.presence is not None
    labels = localizer.presence.labels
    names = model.encode_text(labels).double()
    others = (names @ image).numpy()

    def probability(score: float) -> float:
        expected = len(labels) * norm.sf((score - others.mean()) / others.std(ddof=1))
        return float(1 / (1 + expected**2))

    by_text = probability(float(result.prompts[1].direction.double() @ image))
    weights = np.exp(model.naming_scale * (names @ result.prompts[0].direction.double()).numpy())
    by_sound = float(np.dot(weights / weights.sum(), [probability(score) for score in others]))
    assert result.presence is not None
    assert result.presence.tolist() == pytest.approx([by_sound, by_text], abs=1e-4)


def test_exceptional() -> None:
    others = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([[-3.0, 0.0, 2.0, 9.0]]).expand(2, -1)
    found = exceptional(scores, others)
    assert (found.diff(dim=1) > 0).all() and found[:, 0].max() < 1e-3 and found[:, -1].min() > 0.999
    assert torch.isfinite(exceptional(scores, torch.zeros(2, 50))).all()  # an image that fits all labels alike


def test_unknown(cache: Path) -> None:
    """Without a calibration, and for prompts of other modalities."""
    model = mini()
    combined = sum(Localizer(model).encode(text="a dog", audio=sound(0)))
    result = avgrad.localize(scene(13), model=model, text="a dog", prompts=combined, presence="reference")  # type: ignore[arg-type]
    assert result.presence is not None and not math.isnan(result.presence[0]) and math.isnan(result.presence[1])
    model.calibration = None
    assert avgrad.localize(scene(13), model=model, text="a dog").presence is None
    with pytest.raises(InputError, match="presence='sure' is not accepted; expected 'auto', 'reference' or None"):
        Localizer(model, presence="sure")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="takes no free texts to compare with"):
        Localizer(load("mini", towers=["vision"]), presence="reference")


def test_kept_and_shown(tmp_path: Path) -> None:
    localizer = Localizer(mini())
    localizer.set_image(scene(13))
    result = localizer.localize(text=["a dog", "a train"])
    result.save(tmp_path)
    loaded = Localization.load(tmp_path)
    assert loaded.presence is not None and result.presence is not None
    torch.testing.assert_close(loaded.presence, result.presence, rtol=0, atol=1e-6)
    document = json.loads((tmp_path / "result.json").read_text())
    assert [prompt["presence"] > 0.5 for prompt in document["prompts"]] == [True, False]
    present, absent = (np.asarray(result.overlay(index, 1.0, absent="grey")) for index in (0, 1))
    assert np.array_equal(present, np.asarray(result.overlay(0, 1.0)))
    assert np.array_equal(absent, np.asarray(result.overlay(1, 1.0, colormap="gray")))
    unknown = replace(result, presence=None)
    assert np.array_equal(np.asarray(unknown.overlay(1, absent="grey")), np.asarray(result.overlay(1)))
    unknown.save(tmp_path)
    assert Localization.load(tmp_path).presence is None
    with pytest.raises(InputError, match="absent='blue' is not accepted"):
        result.overlay(0, absent="blue")  # type: ignore[arg-type]


# ------------------------------------------------------------------ fitting


def test_fit_against_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    scores = rng.normal(0.2, 0.1, 4000)
    present = rng.random(4000) < 1 / (1 + np.exp(-(25 * scores - 6)))
    found = fit_calibration(torch.from_numpy(scores), torch.from_numpy(present))
    positives, negatives = present.sum(), (~present).sum()
    # Platt's targets as weighted copies of each pair
    targets = np.where(present, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    doubled = np.concatenate([scores, scores])[:, None]
    outcome, weights = np.repeat([1, 0], 4000), np.concatenate([targets, 1 - targets])
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(doubled, outcome, sample_weight=weights)
    assert found.scale == pytest.approx(float(expected.coef_[0, 0]), rel=1e-3)
    assert found.bias == pytest.approx(float(expected.intercept_[0]), rel=1e-3)


def test_fit_of_separable_scores_is_finite() -> None:
    found = fit_calibration(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([False, False, True, True]))
    assert 0 < found.scale < 100 and found.probability(0.5) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(InputError, match="all pairs are present, or none is"):
        fit_calibration(torch.rand(5), torch.ones(5))
    with pytest.raises(InputError, match="not finite"):
        fit_calibration(torch.tensor([math.nan, 0.0]), torch.tensor([True, False]))


def test_measures_against_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2000, generator=generator)
    present = torch.rand(2000, generator=generator) < probabilities**2
    scores = (probabilities * 50).round()  # with ties
    assert roc_auc(scores, present) == pytest.approx(float(binary_auroc(scores / 50, present.long())), abs=1e-6)
    expected = binary_calibration_error(probabilities, present.long(), n_bins=15)
    assert calibration_error(reliability(probabilities, present)) == pytest.approx(float(expected), abs=1e-6)
    assert math.isnan(roc_auc(scores, torch.zeros(2000, dtype=torch.bool)))


def test_fitted_calibrations_are_used(cache: Path) -> None:
    model = mini()
    model.calibration, model.name = None, "some:model"
    write_calibrations("some:model", {"text": Calibration(10.0, -2.0)})
    result = avgrad.localize(scene(13), model=model, text="a dog", audio=sound(13))
    assert result.presence is not None
    assert math.isnan(result.presence[0])  # only texts were calibrated
    assert float(result.presence[1]) == pytest.approx(1 / (1 + math.exp(2 - 10 * float(result.scores[1]))), abs=1e-6)
    assert fitted_calibrations("some_model") == {}  # another model whose file has the same name
    calibration_path("some:model").write_text('{"model": "some:model"}')
    with pytest.raises(InputError, match="is no calibration"):
        Localizer(model)


def test_command(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = (13, 9, 0)
    for own in classes:
        for place in range(6):
            drawn = draw_scene(scene_rng("test calibrate", own, place), 128, classes=[own])
            name = CLASSES[own].name
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "sounds" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.image).save(tmp_path / "images" / name / f"{place}.png")
            waveform = mix_sound(own, scene_rng("test calibrate", own, 10 + place), 2.5)
            soundfile.write(tmp_path / "sounds" / name / f"{place}.wav", waveform, 16_000)
    (tmp_path / "images" / CLASSES[0].name / "notes.txt").write_text("not an image")

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["avgrad", "calibrate", "mini", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    folders = ["--images", str(tmp_path / "images"), "--sounds", str(tmp_path / "sounds")]
    assert run(*folders, "--diagram", str(tmp_path / "diagram.png")) == 0
    found = fitted_calibrations("mini")
    assert set(found) == {"text", "sound"} and all(own.scale > 1 for own in found.values())
    assert Image.open(tmp_path / "diagram.png").size == (540, 540)
    capsys.readouterr()
    assert run("--images", str(tmp_path / "nowhere")) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert run("--images", str(tmp_path / "images" / "bell")) == 2
    assert "0 folders; one for each of at least two classes is expected" in capsys.readouterr().err
    (tmp_path / "sounds" / "owl").mkdir()
    assert run(*folders) == 2
    assert "has 0 files that can be read; at least 2 are expected" in capsys.readouterr().err
    for place in range(2):
        soundfile.write(tmp_path / "sounds" / "owl" / f"{place}.wav", *sound(1))
    assert run(*folders) == 2
    assert "has the class 'owl', of which there are no images" in capsys.readouterr().err
