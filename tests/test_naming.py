"""Names for sounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from avgrad import CheckpointError, InputError, MediaError, PromptError, load
from avgrad.cli import main
from avgrad.media import open_audio
from avgrad.models.imagebind import ImageBind
from avgrad.models.naming import sound_names
from avgrad.scenes import CLASSES, mix_sound, scene_rng


@pytest.fixture(scope="module")
def model() -> ImageBind:
    loaded = load("mini")
    assert isinstance(loaded, ImageBind)
    return loaded


def sound(object_class: int) -> tuple[np.ndarray, int]:
    return mix_sound(object_class, scene_rng("test naming", 0, object_class), 2.5), 16_000


def test_most_sounds_are_named_right(model: ImageBind) -> None:
    names = [model.describe(sound(object_class), top=1)[0].label for object_class in range(len(CLASSES))]
    assert sum(name == own.name for name, own in zip(names, CLASSES, strict=True)) >= 13


def test_probabilities(model: ImageBind) -> None:
    labels = ["dog", "cat", "bell", "rain"]
    found = model.describe(sound(13), labels, top=9)
    assert found[0].label == "dog" and {name.label for name in found} == set(labels)
    cosines = model.encode_text(labels) @ model.encode_sound(open_audio(sound(13)))
    assert model.calibration is not None
    expected = dict(zip(labels, torch.softmax(model.calibration.scale * cosines, 0).tolist(), strict=True))
    assert [name.probability for name in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)
    assert {name.label: name.probability for name in found} == pytest.approx(expected, abs=1e-5)
    with open_audio(sound(13)) as opened:
        assert model.describe(opened, labels, top=2) == found[:2]


def test_built_in_names(model: ImageBind) -> None:
    names = sound_names()
    assert len(set(names)) == len(names) > 200
    assert sorted(name for name in names if model.knows(name)) == sorted(own.name for own in CLASSES)
    assert model.knows("a photo of a dog") and not model.knows("no train") and not model.knows("собака")


def test_other_weights(model: ImageBind) -> None:
    """Embeddings of names are kept, but not those of weights that are gone."""
    other = load("mini")
    assert isinstance(other, ImageBind)
    before = other.describe(sound(0), top=16)
    assert before == model.describe(sound(0), top=16)
    state = {
        name: value.flip(0) if name.endswith("text.proj.1.weight") else value
        for name, value in other.state_dict().items()
    }
    other.load_state_dict(state, assign=True)
    assert other.describe(sound(0), top=16) != before


def test_the_models_own_scale(model: ImageBind) -> None:
    """Without a calibration it is the text tower's own, at most 100."""
    scaled = load("mini")
    assert isinstance(scaled, ImageBind)
    scaled.calibration = None
    assert scaled.naming_scale == pytest.approx(1 / 0.07, rel=1e-3)
    scaled.modality_postprocessors["text"][1].log_logit_scale.fill_(9.0)  # type: ignore[index]
    assert scaled.naming_scale == 100


def test_refused(model: ImageBind) -> None:
    with pytest.raises(PromptError, match="labels are empty; give at least one name"):
        model.describe(sound(0), [])
    with pytest.raises(PromptError, match="the label 'dog' is given twice"):
        model.describe(sound(0), ["dog", "cat", " dog"])
    with pytest.raises(PromptError, match="text is empty"):
        model.describe(sound(0), ["dog", " "])
    for top in (0, 1.5, "2"):
        with pytest.raises(InputError, match="is not an integer of at least 1"):
            model.describe(sound(0), top=top)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="silent"):
        model.describe((np.zeros((1, 16_000)), 16_000))
    with pytest.raises(CheckpointError, match="without its text tower"):
        load("mini", towers=["audio"]).describe(sound(0))  # type: ignore[attr-defined]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"{CLASSES[own].name} {own}.wav" for own in (13, 11)]
    for path, own in zip(paths, (13, 11), strict=True):
        soundfile.write(path, *sound(own))
    written = tmp_path / "names.json"
    arguments = ["avgrad", "describe", *map(str, paths), "--model", "mini", "--top", "2", "--json", str(written)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    content = json.loads(written.read_text())
    assert content["model"] == "mini"
    assert [names[0]["label"] for names in content["sounds"].values()] == ["dog", "bird"]
    assert all(len(names) == 2 for names in content["sounds"].values())
    assert "dog" in capsys.readouterr().out
