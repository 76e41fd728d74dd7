"""Finding what looks like this image: images as prompts, with the bundled model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import avgrad
from avgrad import Localizer, MediaError, PromptError
from avgrad.cli import main
from avgrad.models.imagebind import ImageBind
from avgrad.scenes import draw_scene, scene_rng


def _scene(number: int) -> Image.Image:
    return Image.fromarray(draw_scene(scene_rng("test image prompts", number, 0), 160, classes=[number]).image)


@pytest.fixture(scope="module")
def model() -> ImageBind:
    loaded = avgrad.load("mini", towers=("vision",))
    assert isinstance(loaded, ImageBind)
    return loaded


def test_every_source_and_the_order(model: ImageBind, tmp_path: Path) -> None:
    looked_for = _scene(3).resize((200, 160))
    looked_for.save(tmp_path / "like this.png")
    localizer = Localizer(model)
    localizer.set_image(_scene(5))
    sources = [
        tmp_path / "like this.png",
        looked_for,
        np.asarray(looked_for),
        (tmp_path / "like this.png").read_bytes(),
    ]
    made = avgrad.Prompt(torch.ones(model.config.out_embed_dim), "ones", "embedding")
    result = localizer.localize(image=sources, prompts=made)
    assert [prompt.label for prompt in result.prompts] == ["like this.png", "image 2", "image 3", "image 4", "ones"]
    assert [prompt.modality for prompt in result.prompts] == ["image"] * 4 + ["embedding"]
    expected = model.encode_image(model.pixels(looked_for)[None])[0]
    for prompt in result.prompts[:4]:
        assert torch.equal(prompt.embedding, expected)
    pixels = model.preprocess.whole(_scene(5))[None]
    scores = (model.encode_image(pixels) @ expected)[0]
    torch.testing.assert_close(result.scores[0], scores, rtol=0, atol=1e-6)
    alone = avgrad.localize(_scene(5), image=np.asarray(looked_for), model=model)
    torch.testing.assert_close(alone.heatmaps[0], result.heatmaps[0], rtol=0, atol=1e-5)
    assert [p.modality for p in localizer.encode(image=looked_for)] == ["image"]


def test_an_image_looks_most_like_itself(model: ImageBind) -> None:
    images = [_scene(number) for number in (1, 5, 9, 13)]
    localizer = Localizer(model)
    for index, image in enumerate(images):
        localizer.set_image(image)
        assert localizer.localize(image=images).scores.argmax() == index


def test_an_image_that_is_none(model: ImageBind) -> None:
    localizer = Localizer(model)
    localizer.set_image(_scene(5))
    with pytest.raises(MediaError):
        localizer.localize(image=b"no image at all")
    with pytest.raises(PromptError, match="there is no prompt"):
        localizer.localize(image=[])


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scene(5).save(tmp_path / "scene.png")
    _scene(3).save(tmp_path / "like.png")
    monkeypatch.chdir(tmp_path)
    arguments = ["localize", "scene.png", "--image", "like.png", "--image", "scene.png", "--model", "mini"]
    monkeypatch.setattr(sys, "argv", ["avgrad", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code in (0, None)
    document = json.loads((tmp_path / "avgrad_out" / "result.json").read_text())
    assert [(p["label"], p["modality"]) for p in document["prompts"]] == [("like.png", "image"), ("scene.png", "image")]
