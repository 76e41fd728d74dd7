"""Videos: frames per second end to end, beside a plain forward pass: `python -m benchmarks.speed --video`.

A plain row is the library's batched forward pass over the frames that are analysed, decoded and preprocessed before. A
localize row goes from the file to the results; a write row also writes the heatmap video and the timeline.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from avgrad import Localizer, Prompt, localize_video
from avgrad.engine.attribute import prepare
from avgrad.media import open_video
from avgrad.media.video import FrameReader, frames_at, upright
from avgrad.media.video_file import VideoFile
from avgrad.scenes.samples import samples
from avgrad.video.save import Parts, save_moments
from benchmarks.device import use
from benchmarks.models import build
from benchmarks.tables import markdown
from benchmarks.timing import time_in_rounds

# square, so that the library's forward pass sees the same frames
WIDTH, HEIGHT, RATE, SECONDS = 480, 480, 25, 8
FPS, BATCH = 4.0, 16


@dataclass(frozen=True)
class VideoReport:
    """What was measured.

    Attributes:
        title: how.
        seconds: for each model, of each row.
    """

    title: str
    seconds: dict[str, dict[str, float]]

    def tables(self) -> str:
        """A Markdown table."""
        count = round(FPS * SECONDS)
        lines = [
            [f"{model}: {row}", f"{count / seconds:.2f}", f"{seconds / rows['plain forward']:.2f}"]
            for model, rows in self.seconds.items()
            for row, seconds in rows.items()
        ]
        return f"{self.title}\n\n{markdown(('row', 'analysed frames/s', 'plain forwards'), lines)}"


def write_clip(path: Path) -> None:
    """Writes an MP4 in which the camera pans over a sample scene, with a tone."""
    scene = np.asarray(Image.open(samples()[0].image).convert("RGB").resize((WIDTH + 200, WIDTH + 200)))
    with VideoFile(path, WIDTH, HEIGHT, Fraction(RATE)) as file:
        file.encode_sound(16_000, 1)
        for number in range(RATE * SECONDS):
            left = round(200 * number / (RATE * SECONDS))
            image = np.ascontiguousarray(scene[left : left + HEIGHT, left : left + WIDTH])
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
            time = np.arange(number * 640, (number + 1) * 640) / 16_000
            file.write_image(frame, number / RATE)
            file.write_sound((0.2 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)[None])


def measure_video(models: Sequence[str], device: str, dtype: str, rounds: int) -> VideoReport:
    """Times a generated clip of 8 seconds, analysed at 4 frames per second for one prompt.

    Args:
        models, device, dtype: as on the command line.
        rounds: how often all rows are timed.

    Raises:
        OptionError, UnsupportedModelError: an option that cannot be used.
    """
    where, torch_dtype = use(device, dtype)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clip(folder / "clip.mp4")
        video = open_video(folder / "clip.mp4")
        with FrameReader(video) as reader:
            images = [upright(frame, video) for _, frame in frames_at(reader, FPS)]
        for model in models:
            subject = build(model, where, torch_dtype)
            localizer = Localizer(subject.model, keep=False)
            pixels = torch.stack([subject.model.preprocess(image) for image in images])
            whole = torch.stack([subject.model.preprocess.whole(image) for image in images])
            prompt = Prompt(torch.randn(subject.view.embed_dim), "a prompt", "embedding")
            rows: dict[str, Callable[[], object]] = {
                "plain forward": _batched(subject.plain(subject.size), pixels.to(where, torch_dtype)),
                "legrad alone": _explain(localizer, whole, prompt),
                "localize_video": lambda of=localizer, by=prompt: list(_moments(video, of, by)),  # type: ignore[misc]
                "and write": lambda of=localizer, by=prompt: _write(folder / "out", video, of, by),  # type: ignore[misc]
            }
            times = time_in_rounds(rows, rounds)
            found[model] = {row: statistics.median(values) for row, values in times.items()}
    title = (
        f"{WIDTH} x {HEIGHT} pixels, {RATE} frames per second, {SECONDS} s, {FPS:g} of them analysed per second by one "
        f"prompt in batches of {BATCH}; medians of {rounds} rounds"
    )
    return VideoReport(title, found)


def _batched(forward: Callable[[torch.Tensor], Any], pixels: torch.Tensor) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        for part in pixels.split(BATCH):
            forward(part)

    return run


def _explain(localizer: Localizer, pixels: torch.Tensor, prompt: Prompt) -> Callable[[], None]:
    def run() -> None:
        for part in pixels.split(BATCH):
            prepared = prepare(localizer.model, part, keep=False)
            images = [Image.new("RGB", (WIDTH, HEIGHT))] * len(part)
            localizer.results(prepared, images, [""] * len(part), [[prompt]], localizer.settings)

    return run


def _moments(video: Any, localizer: Localizer, prompt: Prompt) -> Any:
    return localize_video(video, model=localizer, prompts=prompt, fps=FPS, batch_size=BATCH)


def _write(out: Path, video: Any, localizer: Localizer, prompt: Prompt) -> None:
    out.mkdir(exist_ok=True)
    names = [{"label": prompt.label, "modality": prompt.modality}]
    with _moments(video, localizer, prompt) as moments:
        save_moments(out, video, moments, names, {}, parts=Parts(out, "benchmark"), model=localizer.model)
