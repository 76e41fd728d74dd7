"""A video's results on disk: written while they are made, and gone on with where they were left."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avgrad.engine.attribute import normalizes_first
from avgrad.files import write_atomic
from avgrad.media.video import Video
from avgrad.models.model import Model
from avgrad.prompts import Prompt
from avgrad.video.heatmap_video import SIDE, Heat, HeatmapVideo, strengths_of
from avgrad.video.moment import Moment
from avgrad.video.timeline import Timeline, plot, presence_of, waveform, write_tables

CHUNK = 64  # moments per file while the work goes on


def fingerprint(video: Video, prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> str:
    """Identifies what results depend on: the file's beginning and size, the prompts and the settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(f"{video.name} {video.source.size}".encode(errors="replace"))
    digest.update(video.source.head)
    for prompt in prompts:
        digest.update(prompt.embedding.float().numpy().tobytes())
    return digest.hexdigest()


class Parts:
    """The moments found so far, in a folder beside the results; empty where they belong to other settings.

    Args:
        out: folder of the results; the parts lie in `out/parts`.
        key: of the settings, see `fingerprint`.
    """

    def __init__(self, out: Path, key: str) -> None:
        self._folder = out / "parts"
        try:
            known = (self._folder / "key").read_text() == key
        except OSError:
            known = False
        if not known:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._folder / "key", key.encode())
        self.done = [Timeline.read(path) for path in sorted(self._folder.glob("*.npz"))]
        self._next = len(self.done)

    @property
    def count(self) -> int:
        """How many moments were found before."""
        return sum(len(part) for part in self.done)

    def add(self, part: Timeline) -> None:
        """Keeps further moments."""
        part.write(self._folder / f"{self._next:06d}.npz")
        self._next += 1
        self.done.append(part)

    def remove(self) -> None:
        """Removes the files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def save_moments(
    out: Path,
    video: Video,
    moments: Iterable[Moment],
    prompts: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    *,
    parts: Parts,
    model: Model,
    track: int = 0,
    side: int = SIDE,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[Timeline | None, float]:
    """Writes `heatmap.mp4`, `timeline.png`, `timeline.parquet`, `timeline.json` and `heatmaps.npz`.

    After a KeyboardInterrupt there is a heatmap video as far as it came, and what was found is kept in `parts`.

    Args:
        out: the folder, which exists.
        video: the video.
        moments: those that are not in `parts` yet.
        prompts: "label" and "modality" of each.
        about: what the JSON says of model, method and settings.
        parts: the moments found before.
        model: what found them.
        track: number of the sound track.
        side: the longer side of the heatmap video.
        progress: called with the number of moments done at once.

    Returns:
        What was found, None if there was an interruption; and up to where the heatmap video goes, in seconds.
    """

    def heat(time: float, maps: Tensor, presence: Tensor) -> Heat:
        return Heat(time, maps, strengths_of(presence), normalizes_first(model.vision))

    movie = HeatmapVideo(out / "heatmap.mp4", video, len(prompts), track, side)
    new: list[Moment] = []
    try:
        for part in list(parts.done):
            for index, time in enumerate(part.times.tolist()):
                movie.add(heat(time, part.heat(index), torch.from_numpy(part.presence[index])))
            progress(len(part))
        for moment in moments:
            new.append(moment)
            movie.add(heat(moment.time, moment.maps, presence_of(moment)))
            if len(new) == CHUNK:
                parts.add(Timeline.of(new))
                new.clear()
            progress(1)
        if new:
            parts.add(Timeline.of(new))
            new.clear()
        movie.finish()
    except KeyboardInterrupt:
        if new:
            parts.add(Timeline.of(new))
        movie.stop()
        return None, movie.seconds
    except BaseException:
        movie.stop()
        raise
    timeline = Timeline.joined(parts.done)
    wave = waveform(video, track) if video.num_tracks else None
    plot(timeline, prompts, video.duration, wave, out / "timeline.png")
    labels = np.array([str(prompt["label"]) for prompt in prompts])
    timeline.write(out / "heatmaps.npz", labels=labels)
    write_tables(out, timeline, prompts, about)
    parts.remove()
    return timeline, movie.seconds
