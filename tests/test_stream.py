"""Many images at once: any iterable, in order, in batches, decoded ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avgrad import InputError, Localization, Localizer, MediaError, PromptError, load
from avgrad.models.imagebind import ImageBind
from avgrad.scenes import draw_scene, scene_rng

SHAPES = ((160, 160), (160, 120), (120, 160))


@pytest.fixture(scope="module")
def model() -> ImageBind:
    loaded = load("mini", towers=["vision", "text"])
    assert isinstance(loaded, ImageBind)
    return loaded


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    scenes = [draw_scene(scene_rng("test stream", number, 0), 160, classes=[number]).image for number in range(4)]
    return [Image.fromarray(scenes[number % 4]).resize(SHAPES[number % 3]) for number in range(11)]


def _one_by_one(model: ImageBind, images: list[Image.Image], **arguments: Any) -> list[Localization]:
    localizer, results = Localizer(model), []
    for image in images:
        localizer.set_image(image)
        results.append(localizer.localize(**arguments))
    return results


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_results_are_those_of_single_images_in_order(
    model: ImageBind, images: list[Image.Image], batch_size: int
) -> None:
    text = ["a dog", "a bell"]
    expected = _one_by_one(model, images, text=text)
    found = list(Localizer(model).stream(iter(images), text=text, batch_size=batch_size))
    assert len(found) == len(images)
    for one, other in zip(found, expected, strict=True):
        assert one.image.size == other.image.size
        torch.testing.assert_close(one.heatmaps, other.heatmaps, rtol=0, atol=1e-4)
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
        assert set(one.seconds) == {"image", "heatmaps"}


def test_images_of_one_shape_share_a_pass_and_prompts_are_encoded_once(
    model: ImageBind, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    handle = model.modality_preprocessors["vision"].register_forward_hook(
        lambda module, inputs, output: batches.append(len(output))
    )
    texts: list[str] = []
    encode = ImageBind.encode_text

    def noted(self: ImageBind, given: list[str]) -> torch.Tensor:
        texts.extend(given)
        return encode(self, given)

    monkeypatch.setattr(ImageBind, "encode_text", noted)
    try:
        assert len(list(Localizer(model).stream(images, text="a dog", batch_size=4))) == len(images)
    finally:
        handle.remove()
    assert sorted(batches) == [3, 4, 4]  # of the eleven images four, four and three have one shape
    assert texts == ["a dog"]


def test_any_source_from_any_iterable(model: ImageBind, images: list[Image.Image], tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    images[0].save(path)
    array = np.asarray(images[0])

    def sources() -> Iterator[Any]:
        yield from (path, str(path), path.read_bytes(), images[0], array, torch.from_numpy(array / 255).movedim(-1, 0))

    results = list(Localizer(model).stream(sources(), text="a dog"))
    assert [result.name for result in results] == ["scene.png", "scene.png", "", "", "", ""]
    for result in results[1:]:
        assert torch.equal(result.maps, results[0].maps)
    assert list(Localizer(model).stream([], text="a dog")) == []


def test_the_iterable_is_read_only_as_far_ahead_as_needed(model: ImageBind, images: list[Image.Image]) -> None:
    read: list[int] = []

    def endless() -> Iterator[Image.Image]:
        while True:
            read.append(len(read))
            yield images[0]

    stream = Localizer(model).stream(endless(), text="a dog", batch_size=2, workers=1)
    assert read == []
    for _ in range(3):
        next(stream)
    assert len(read) <= 12
    stream.close()  # type: ignore[attr-defined]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("avgrad-decode")]


def test_an_error_comes_at_the_place_of_its_image(model: ImageBind, images: list[Image.Image]) -> None:
    stream = Localizer(model).stream([*images[:5], b"not an image", *images[5:]], text="a dog", batch_size=4)
    for image in images[:5]:
        assert next(stream).image.size == image.size
    with pytest.raises(MediaError, match=r"images\[5\]: the given bytes is in no known format"):
        next(stream)

    def broken() -> Iterator[Image.Image]:
        yield from images[:3]
        raise KeyError("the source's own")

    stream = Localizer(model).stream(broken(), text="a dog")
    for image in images[:3]:
        assert next(stream).image.size == image.size
    with pytest.raises(KeyError, match="the source's own"):
        next(stream)


def test_wrong_arguments_are_said_at_once(model: ImageBind, images: list[Image.Image]) -> None:
    localizer = Localizer(model)
    with pytest.raises(PromptError, match="there is no prompt"):
        localizer.stream(images)
    for wrong in ({"batch_size": 0}, {"workers": 2.5}):
        with pytest.raises(InputError, match="is not an integer of at least 1"):
            localizer.stream(images, text="a dog", **wrong)  # type: ignore[arg-type]


def test_the_image_that_was_set_stays(model: ImageBind, images: list[Image.Image]) -> None:
    localizer = Localizer(model)
    localizer.set_image(images[1])
    before = localizer.localize(text="a dog")
    list(localizer.stream(images, text="a bell"))
    assert torch.equal(localizer.localize(text="a dog").maps, before.maps)
