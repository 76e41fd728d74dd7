"""Synthetic videos with their truth."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avgrad.files import write_atomic
from avgrad.media.video_file import VideoFile
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.images import scene_rng
from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series
from avgrad.scenes.sounds import SAMPLE_RATE
from avgrad.scenes.video import RATE, SyntheticVideo, draw_video

INDEX = "videos.json"


def encode_video(path: Path, frames: Iterable[NDArray[np.uint8]], waveform: NDArray[np.float32], quality: int) -> None:
    """Writes frames `[H, W, 3]`, `RATE` per second, and their sound `[samples]` at 16 kHz as an MP4 file."""
    import av

    step = SAMPLE_RATE // RATE
    file: VideoFile | None = None
    try:
        for number, image in enumerate(frames):
            if file is None:
                height, width = image.shape[:2]
                file = VideoFile(path, width, height, Fraction(RATE), quality, reproducible=True)
                file.encode_sound(SAMPLE_RATE, 1, 48_000)
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
            file.write_image(frame, number / RATE)
            file.write_sound(waveform[None, number * step : (number + 1) * step])
    finally:
        if file is not None:
            file.close()


@layout("video")
def write_series(folder: Path, series: Series) -> None:
    """Videos of 12 seconds, and what is in them and sounds when.

    The files are `videos.json`, `videos/video_000000.mp4`, `stems/video_000000_CLASS.flac` of every class that sounds
    (and `..._noise.flac`), and `truth/video_000000.npz`: `labels` uint8 `[T, H, W]` (i + 1 for the visible pixels of
    object i), `sounding` bool `[T, n + 1]` (the last column is the off-screen sound) and `times` `[T]` in seconds.
    """
    entries = []
    for index in series:
        video = draw_video(scene_rng("video", series.seed, index), series.size)
        entries.append(write_video(folder, f"video_{index:06d}", video))
    write_atomic(folder / INDEX, (json.dumps(entries, indent=1) + "\n").encode())


def write_video(
    folder: Path, name: str, video: SyntheticVideo, quality: int = 20, stems: bool = True
) -> dict[str, Any]:
    """Writes a video, its truth and, if asked for, its stems; returns its entry in the index."""
    import soundfile

    for part in ("videos", "truth", *(["stems"] if stems else [])):
        (folder / part).mkdir(parents=True, exist_ok=True)
    encode_video(folder / "videos" / f"{name}.mp4", video.frames, video.waveform, quality)
    names = [CLASSES[number].name for number in (*video.classes, video.offscreen)]
    for stem, what in zip(video.stems, [*names, "noise"], strict=True):
        if stems and stem.any():
            write = partial(soundfile.write, data=stem, samplerate=SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            write_atomic(folder / "stems" / f"{name}_{what}.flac", write)
    truth = {"labels": video.labels, "sounding": video.sounding, "times": video.times}
    write_atomic(folder / "truth" / f"{name}.npz", lambda file: np.savez_compressed(file, **truth))  # type: ignore[arg-type]
    return {
        "video": f"videos/{name}.mp4",
        "truth": f"truth/{name}.npz",
        "classes": names[:-1],
        "offscreen": names[-1],
        "segments": [
            {
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "sounding": [names[number] for number in segment.objects],
                "offscreen": segment.offscreen,
            }
            for segment in video.segments
        ],
    }
