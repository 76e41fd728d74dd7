"""Synthetic images: reproducible, exactly masked, hard enough."""

import numpy as np
import pytest

from avgrad.scenes import CLASSES, Scene, draw_scene, scene_rng
from avgrad.scenes.objects import DRAWINGS
from avgrad.scenes.pen import Pen


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """160 scenes of 96 pixels, each class ten times the first of its objects."""
    return [
        draw_scene(scene_rng("test", 0, index), 96, num_objects=1 + index % 4, classes=[index % len(CLASSES)])
        for index in range(160)
    ]


def test_classes_are_distinct() -> None:
    assert 16 <= len(CLASSES) <= 18
    assert len({object_class.name for object_class in CLASSES}) == len(CLASSES)
    ids = [object_class.ade_class_id for object_class in CLASSES]
    assert len(set(ids)) == len(ids)
    assert min(ids) >= 1
    assert any(number % 256 == 0 or number > 256 for number in ids), "the encoding's red channel is not in use"
    names = [name for object_class in CLASSES for name in (object_class.name, *object_class.synonyms)]
    assert len(set(names)) == len(names)


def test_same_state_same_image() -> None:
    first, second = (draw_scene(scene_rng("test", 3, 5), 128) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert first.classes == second.classes


def test_no_image_comes_twice() -> None:
    images = {
        draw_scene(scene_rng(domain, seed, index), 64).image.tobytes()
        for domain in ("train", "dataset picture")
        for seed in (0, 1)
        for index in range(8)
    }
    assert len(images) == 32


def test_shapes_and_disjoint_masks(scenes: list[Scene]) -> None:
    for index, scene in enumerate(scenes):
        count = 1 + index % 4
        assert scene.image.shape == (96, 96, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (count, 96, 96)
        assert scene.masks.dtype == np.bool_
        assert len(set(scene.classes)) == count
        assert scene.classes[0] == index % len(CLASSES)
        assert scene.masks.sum(0).max() == 1


def test_areas(scenes: list[Scene]) -> None:
    areas = np.concatenate([scene.masks.mean((1, 2)) for scene in scenes])
    assert areas.min() >= 0.015
    assert areas.max() <= 0.18
    assert 0.07 <= areas.mean() <= 0.1
    assert np.mean((areas >= 0.02) & (areas <= 0.15)) >= 0.9
    for object_class in range(len(CLASSES)):
        own = [m.mean() for s in scenes for k, m in zip(s.classes, s.masks, strict=True) if k == object_class]
        assert 0.06 <= float(np.mean(own)) <= 0.11, CLASSES[object_class].name


def test_central_blob_is_weak(scenes: list[Scene]) -> None:
    """A fixed Gaussian in the middle, at the best of 20 thresholds for each class, scores under 0.2 mIoU."""
    axis = (np.arange(96) + 0.5) / 96 - 0.5
    best = 0.0
    for width in (0.1, 0.2, 0.3):
        blob = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * width**2))
        blob = (blob - blob.min()) / (blob.max() - blob.min())
        scores = []
        for object_class in range(len(CLASSES)):
            masks = np.stack([scene.masks[0] for scene in scenes if scene.classes[0] == object_class])
            over = [blob > threshold for threshold in np.linspace(0, 1, 20, endpoint=False)]
            scores.append(max((masks & hot).sum() / (masks | hot).sum() for hot in over))
        best = max(best, float(np.mean(scores)))
    assert best < 0.2


@pytest.mark.parametrize("object_class", range(len(CLASSES)), ids=[object_class.name for object_class in CLASSES])
def test_mask_is_where_the_object_is(object_class: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another colour of the object changes the image where its mask is, and nowhere beyond its rim."""
    from avgrad.scenes import images

    def scene(hue: float) -> Scene:
        def flat(pen: Pen) -> None:
            DRAWINGS[object_class].draw(pen)
            alpha = pen._image.getchannel("A")
            red, green = int(255 * hue), int(255 * (1 - hue))
            pen._image.paste((red, green, 0), (0, 0, *pen._image.size))
            pen._image.putalpha(alpha)

        drawings = list(DRAWINGS)
        drawings[object_class] = DRAWINGS[object_class]._replace(draw=flat)
        monkeypatch.setattr(images, "DRAWINGS", tuple(drawings))
        # all else, the camera's noise too, is drawn from the same state
        return draw_scene(scene_rng("mask", 1, object_class), 160, num_objects=2, classes=[object_class])

    red, green = scene(1.0), scene(0.0)
    np.testing.assert_array_equal(red.masks, green.masks)
    difference = np.abs(red.image.astype(int) - green.image.astype(int)).max(-1)
    mask = red.masks[0]
    assert (difference[mask] > 25).mean() > 0.99
    near = np.zeros_like(mask)
    padded = np.pad(mask, 3)
    for dy in range(7):
        for dx in range(7):
            near |= padded[dy : dy + 160, dx : dx + 160]
    assert (difference[~near] > 8).mean() < 0.002
    assert difference[~near].mean() < 0.2


def test_wrong_requests_are_refused() -> None:
    rng = scene_rng("test", 0, 0)
    for arguments in (
        {"size": 16},
        {"num_objects": 5},
        {"num_objects": 0},
        {"classes": [1, 1]},
        {"num_objects": 1, "classes": [1, 2]},
    ):
        with pytest.raises(ValueError, match="a scene has size 32"):
            draw_scene(rng, **arguments)
