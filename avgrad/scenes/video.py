"""Synthetic videos: the objects of a scene move, and one or two of them sound at times that are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avgrad.errors import InputError
from avgrad.scenes.backgrounds import draw_background
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.images import MAX_OBJECTS, Placed, arrange, calm, cast_shadow, develop, draw_layer, shade
from avgrad.scenes.noise import coloured_noise, fade
from avgrad.scenes.sounds import SAMPLE_RATE, level_to, synthesize

RATE = 8  # frames per second
SECONDS = 12.0
_SEGMENT = 2.5, 4.5  # seconds that a state of the sound lasts
_STATES = {"one": 0.5, "both": 0.14, "silence": 0.18, "off-screen": 0.18}
_MIN_VISIBLE_SHARE, _MIN_VISIBLE_AREA = 0.5, 0.015
_CLOSENESS = 0.7  # smallest distance of two objects, in sums of their units
_FADE = 0.03  # seconds


class Segment(NamedTuple):
    """A part of a video in which the same objects sound.

    Attributes:
        start, end: in seconds.
        objects: numbers of the objects that sound, from 0.
        offscreen: whether a class that is not in the image sounds.
    """

    start: float
    end: float
    objects: tuple[int, ...]
    offscreen: bool


class SyntheticVideo(NamedTuple):
    """A video of T frames of n objects, and the truth about it.

    Attributes:
        frames: uint8 `[T, H, W, 3]`, RGB, `RATE` per second.
        labels: uint8 `[T, H, W]`, 0 for the background and i + 1 for the visible pixels of object i.
        classes: of the objects, numbers in `CLASSES`, all different.
        segments: what sounds when, without gaps.
        sounding: bool `[T, n + 1]`, whether each object sounds in each frame; the last column is the off-screen sound.
        offscreen: class of the off-screen sound.
        stems: float32 `[n + 2, samples]` at 16 kHz: of each object, of the off-screen sound, and noise throughout.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    classes: list[int]
    segments: list[Segment]
    sounding: NDArray[np.bool_]
    offscreen: int
    stems: NDArray[np.float32]

    @property
    def times(self) -> NDArray[np.float64]:
        """Of the frames, in seconds."""
        return np.arange(len(self.frames)) / RATE

    @property
    def waveform(self) -> NDArray[np.float32]:
        """The mix of the stems, `[samples]`, within (-1, 1)."""
        mixed = self.stems.sum(0)
        return mixed * np.float32(min(1.0, 0.99 / (float(np.abs(mixed).max()) + 1e-9)))


class _Moving(NamedTuple):
    """A drawing on its way.

    Attributes:
        number: of the object; -1 for clutter.
        pixels: RGBA, float32 `[h, w, 4]`, shaded.
        corners: left and top in every frame, int `[T, 2]`.
        centres: `[T, 2]`, in image sides.
        unit: in image sides.
    """

    number: int
    pixels: NDArray[np.float32]
    corners: NDArray[np.int64]
    centres: NDArray[np.float64]
    unit: float


def draw_video(
    rng: np.random.Generator,
    size: int = 256,
    seconds: float = SECONDS,
    num_objects: int | None = None,
    classes: Sequence[int] | None = None,
) -> SyntheticVideo:
    """Draws one video: two to four objects that move among clutter, one or two of which sound.

    The sound goes through segments of 2.5 to 4.5 seconds in each of which one source sounds, both do, none does, or a
    class that is not in the image does; each source sounds alone in one of them at least. Noise, 15 to 28 dB below the
    sources, lasts throughout.

    Args:
        rng: source of randomness; the same state gives the same video.
        size: height and width in pixels, 32 or more.
        seconds: 5 to 60.
        num_objects: 2 to 4; random if None.
        classes: of the objects, all different; random if None.

    Raises:
        InputError: an argument is out of range.
    """
    count = num_objects or (len(classes) if classes else 2 + int(rng.choice(3, p=(0.4, 0.4, 0.2))))
    if size < 32 or not 5 <= seconds <= 60 or not 2 <= count <= MAX_OBJECTS or (classes and len(classes) != count):
        raise InputError(
            f"a video has size 32 or more, 5 to 60 seconds and 2 to {MAX_OBJECTS} objects; got size {size}, {seconds} "
            f"seconds, {count} objects, classes {classes}"
        )
    order = rng.permutation(len(CLASSES)).tolist()
    wanted = list(classes) if classes else order[:count]
    offscreen = next(number for number in reversed(order) if number not in wanted)
    segments = _draw_segments(rng, seconds, range(1 + int(rng.random() < 0.5)))
    stems = _synthesize(rng, [*wanted, offscreen], segments, seconds)
    length = round(seconds * RATE)
    while True:
        drawn = _attempt(rng, size, wanted, length)
        if drawn is not None:
            break
    sounding = np.zeros((length, count + 1), dtype=bool)
    times = np.arange(length) / RATE
    for segment in segments:
        inside = (times >= segment.start) & (times < segment.end)
        for number in segment.objects:
            sounding[inside, number] = True
        sounding[inside, -1] = segment.offscreen
    return SyntheticVideo(*drawn, wanted, segments, sounding, offscreen, stems)


def _draw_segments(rng: np.random.Generator, seconds: float, sources: Sequence[int]) -> list[Segment]:
    states = [state for state in _STATES if state != "both" or len(sources) > 1]
    weights = np.array([_STATES[state] for state in states])
    while True:
        segments: list[Segment] = []
        start, last = 0.0, ""
        while start < seconds:
            end = start + float(rng.uniform(*_SEGMENT))
            end = seconds if seconds - end < _SEGMENT[0] else end
            chosen = [(source,) for source in sources]
            state = str(rng.choice(states, p=weights / weights.sum()))
            objects = {"one": chosen[int(rng.integers(len(chosen)))], "both": tuple(sources)}.get(state, ())
            if f"{state} {objects}" != last:  # two segments in a row differ
                segments.append(Segment(start, end, objects, state == "off-screen"))
                start, last = end, f"{state} {objects}"
        if all(any(segment.objects == (source,) for segment in segments) for source in sources):
            return segments


def _synthesize(
    rng: np.random.Generator, classes: Sequence[int], segments: Sequence[Segment], seconds: float
) -> NDArray[np.float32]:
    """The stems: of each class, the last the off-screen one, and noise, float32 `[len(classes) + 1, samples]`."""
    samples = round(seconds * SAMPLE_RATE)
    stems = np.zeros((len(classes) + 1, samples), dtype=np.float32)
    power = 10 ** (rng.uniform(-28, -16) / 20)
    for segment in segments:
        begin, end = round(segment.start * SAMPLE_RATE), min(round(segment.end * SAMPLE_RATE), samples)
        for number in (*segment.objects, *([len(classes) - 1] if segment.offscreen else [])):
            wave = synthesize(classes[number], rng, (end - begin) / SAMPLE_RATE)
            wave = level_to(wave, power * 10 ** (rng.uniform(-4, 4) / 20))
            stems[number, begin:end] = fade(wave, SAMPLE_RATE, _FADE, _FADE)
    noise = coloured_noise(rng, samples, SAMPLE_RATE)
    stems[-1] = level_to(noise, power * 10 ** (-rng.uniform(15, 28) / 20))
    return stems


def _attempt(
    rng: np.random.Generator, size: int, wanted: list[int], length: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Frames and labels; None if an object is too much hidden somewhere."""
    canvas = calm(rng, draw_background(rng, size)) * 255
    light = rng.uniform(0, 2 * math.pi)
    shadow = rng.uniform(0.15, 0.45) if rng.random() < 0.5 else 0.0
    layers = []
    for layer in arrange(rng, wanted, 1.0):
        moving = _move(rng, layer, wanted, size, length, light)
        if moving is not None:
            layers.append(moving)
    objects = [layer for layer in layers if layer.number >= 0]
    for index, first in enumerate(objects):
        for second in objects[:index]:
            distance = np.linalg.norm(first.centres - second.centres, axis=1).min()
            if distance < _CLOSENESS * (first.unit + second.unit):
                return None
    frames = np.empty((length, size, size, 3), np.uint8)
    labels = np.empty((length, size, size), np.uint8)
    seed = int(rng.integers(2**63))
    for number in range(length):
        image, labels[number] = _compose(canvas, layers, number, shadow, size)
        if number % RATE == 0:
            areas = np.bincount(labels[number].ravel(), minlength=len(wanted) + 1)[1:]
            for moving in objects:
                full = np.count_nonzero(moving.pixels[..., 3] > 127)
                if areas[moving.number] < max(_MIN_VISIBLE_SHARE * full, _MIN_VISIBLE_AREA * size**2):
                    return None
        frames[number] = develop(np.random.default_rng(seed), image, size)  # the same light and grain in every frame
    return frames, labels


def _move(
    rng: np.random.Generator, layer: Placed, wanted: Sequence[int], size: int, length: int, light: float
) -> _Moving | None:
    """A drawing and its way: objects swing about their place, clutter stays."""
    drawn = draw_layer(rng, layer, size)
    if drawn is None:
        return None
    rgba, left, top = drawn
    pixels = np.asarray(rgba).astype(np.float32)
    pixels[..., :3] = shade(rng, pixels[..., :3], light)
    shift = np.zeros((length, 2))
    if layer.object_class >= 0:
        times = np.arange(length)[:, None] / RATE
        period, phase = rng.uniform(4, 10, 2), rng.uniform(0, 2 * math.pi, 2)
        reach = rng.uniform(0.03, 0.16, 2)
        place = np.array([layer.x, layer.y])
        reach = np.minimum(reach, np.maximum(np.minimum(place, 1 - place) - 0.6 * layer.unit, 0.0))
        shift = reach * np.sin(2 * math.pi * times / period + phase)
    corners = np.rint(np.array([left, top]) + shift * size).astype(np.int64)
    number = wanted.index(layer.object_class) if layer.object_class >= 0 else -1
    return _Moving(number, pixels, corners, np.array([layer.x, layer.y]) + shift, layer.unit)


def _compose(
    canvas: NDArray[np.float32], layers: Sequence[_Moving], frame: int, shadow: float, size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One frame before development, float32 `[H, W, 3]`, and its labels."""
    image = canvas.copy()
    labels = np.zeros((size, size), np.uint8)
    for layer in layers:
        left, top = layer.corners[frame].tolist()
        height, width = layer.pixels.shape[:2]
        rows, columns = slice(max(0, top), min(size, top + height)), slice(max(0, left), min(size, left + width))
        if rows.stop <= rows.start or columns.stop <= columns.start:
            continue
        pixels = layer.pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        alpha = pixels[..., 3:] * np.float32(1 / 255)
        if shadow:
            cast_shadow(image, alpha, rows.start, columns.start, shadow, size)
        region = image[rows, columns]
        region += alpha * (pixels[..., :3] - region)
        labels[rows, columns][alpha[..., 0] > 0.5] = layer.number + 1
    return image, labels
