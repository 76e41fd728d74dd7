"""AVSBench S4, MS3 and AVSS: a camera pans over a scene for five seconds, with a frame of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.images import Scene
from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series, save_image, save_sound
from avgrad.scenes.sounds import SAMPLE_RATE

SIDE = 224  # of the frames in pixels
NUM_FRAMES = 5
_MARGIN = 56  # pixels that the camera moves at most


def frames(series: Series, index: int, objects: tuple[int, ...]) -> tuple[Scene, list[tuple[slice, slice]]]:
    """A scene of a video, larger than a frame, and what each frame shows of it.

    Args:
        series: the scenes.
        index: of the scene.
        objects: numbers of objects, one of which is drawn.
    """
    large = Series(series.n, series.seed, SIDE + _MARGIN, series.progress)
    start, end = series.rng("camera", index).integers(0, _MARGIN + 1, (2, 2))
    corners = np.rint(np.linspace(start, end, NUM_FRAMES)).astype(int)
    windows = [(slice(top, top + SIDE), slice(left, left + SIDE)) for top, left in corners.tolist()]
    return large.scene(index, objects), windows


@layout("avsbench-s4")
def write_s4(folder: Path, series: Series) -> None:
    """The first of one or two objects sounds."""
    data = folder / "Single-source" / "s4_data"
    rows = ["name,start,category,split"]
    for index in series:
        video = f"scene_{index:06d}"
        scene, windows = frames(series, index, (1, 2))
        category = CLASSES[scene.classes[0]].name
        for number, window in enumerate(windows, start=1):
            path = Path("test", category, video, f"{video}_{number}.png")
            save_image(data / "visual_frames" / path, scene.image[window])
            save_image(data / "gt_masks" / path, _white(scene.masks[0][window]))
        waveform = series.sound("sound", index, scene.classes[0], NUM_FRAMES)
        save_sound(data / "audio_wav" / "test" / category / f"{video}.wav", waveform)
        rows.append(f"{video},0,{category},test")
    _write_table(folder / "Single-source" / "s4_meta_data.csv", rows)


@layout("avsbench-ms3")
def write_ms3(folder: Path, series: Series) -> None:
    """The first of two or three objects sounds all the time, the second one from a random second on."""
    data = folder / "Multi-sources" / "ms3_data"
    rows = ["name,split"]
    for index in series:
        video = f"scene_{index:06d}"
        scene, windows = frames(series, index, (2, 3))
        onset = int(series.rng("onset", index).integers(NUM_FRAMES))
        for number, window in enumerate(windows, start=1):
            sounding = np.logical_or.reduce(scene.masks[: 2 if number > onset else 1])
            save_image(data / "visual_frames" / video / f"{video}.mp4_{number}.png", scene.image[window])
            save_image(data / "gt_masks" / "test" / video / f"{video}_{number}.png", _white(sounding[window]))
        save_sound(data / "audio_wav" / "test" / f"{video}.wav", two_sounds(series, index, scene, onset))
        rows.append(f"{video},test")
    _write_table(folder / "Multi-sources" / "ms3_meta_data.csv", rows)


@layout("avsbench-avss")
def write_avss(folder: Path, series: Series) -> None:
    """The first of one or two objects sounds; AVSS calls such videos v1s. Classes are those of the scenes."""
    rows = ["vid,uid,s_min,label,split"]
    colors = np.array([_color(number) for number in range(len(CLASSES) + 1)], dtype=np.uint8)
    for index in series:
        video = f"scene_{index:06d}"
        scene, windows = frames(series, index, (1, 2))
        labels = np.where(scene.masks[0], scene.classes[0] + 1, 0)
        for number, window in enumerate(windows):
            save_image(folder / "v1s" / video / "frames" / f"{number}.jpg", scene.image[window])
            save_image(folder / "v1s" / video / "labels_rgb" / f"{number}.png", colors[labels[window]])
        waveform = series.sound("sound", index, scene.classes[0], NUM_FRAMES)
        save_sound(folder / "v1s" / video / "audio.wav", waveform)
        rows.append(f"{video},{video},0,v1s,test")
    _write_table(folder / "metadata.csv", rows)
    names = ["background", *(object_class.name for object_class in CLASSES)]
    (folder / "label2idx.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))


def _color(number: int) -> list[int]:
    """The color of a class in label maps: the bits of its number, three at a time, are high bits of its channels."""
    return [sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]


def two_sounds(series: Series, index: int, scene: Scene, onset: int) -> NDArray[np.float32]:
    """Five seconds of the first object of a scene, and of the second one from `onset` seconds on, `[samples]`."""
    first, second = (series.sound(f"sound {place}", index, scene.classes[place], NUM_FRAMES) for place in range(2))
    second[: onset * SAMPLE_RATE] = 0
    return (first + second) * np.float32(0.5)


def _white(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(mask, 255, 0).astype(np.uint8)


def _write_table(path: Path, rows: list[str]) -> None:
    path.write_text("".join(f"{row}\n" for row in rows))
