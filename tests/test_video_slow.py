"""Long videos: memory does not grow with the length."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avgrad.media.video_file import VideoFile
from avgrad.scenes.video import draw_video

HOUR, STEP = 3600, 4  # seconds, and seconds between two frames: a frame rate as low as that is quick to write

# the peak is that of a process of its own, above what it needs with the model loaded
SCRIPT = """
import resource, sys
import avgrad
from pathlib import Path
from avgrad.scenes.samples import samples
from avgrad.video.save import Parts, save_moments

path, out, fps = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
out.mkdir()
localizer = avgrad.Localizer("mini", keep=False)
localizer.set_image(samples()[0].image)
localizer.localize(text="a bell")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with avgrad.localize_video(path, model=localizer, fps=fps) as moments:
    names = [{"label": "own sound", "modality": "audio"}]
    timeline, seconds = save_moments(
        out, moments.video, moments, names, {}, parts=Parts(out, "key"), model=localizer.model
    )
print(len(timeline), round(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def write_long_video(path: Path, seconds: int, width: int, height: int) -> None:
    """A frame every `STEP` seconds, and a tone; the bit rate is low."""
    drawn = draw_video(np.random.default_rng(0), 256, 6.0).frames[::16]
    frames = [
        av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24").reformat(width, height, "yuv420p")
        for image in drawn
    ]
    time = np.arange(16_000) / 16_000
    second = (0.2 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)[None]
    with VideoFile(path, width, height, Fraction(1, STEP), quality=40) as file:
        file.encode_sound(16_000, 1, 32_000)
        for number in range(seconds):
            if number % STEP == 0:
                file.write_image(frames[number // 60 % len(frames)], float(number))
            file.write_sound(second)


@pytest.mark.slow
def test_an_hour_of_1080p(tmp_path: Path) -> None:
    write_long_video(tmp_path / "hour.mp4", HOUR, 1920, 1080)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "hour.mp4"), str(tmp_path / "out"), "0.1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    moments, seconds, kilobytes = map(int, result.stdout.split())
    assert (moments, seconds) == (HOUR // 10, HOUR - STEP)
    assert kilobytes < 1.5 * 2**20
