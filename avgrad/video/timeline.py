"""What was found in a video over time: tables, curves, and the maps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avgrad.drawing import PALETTE
from avgrad.files import write_atomic
from avgrad.media.video import Video
from avgrad.media.video_sound import SoundReader
from avgrad.video.moment import Moment

BOX_SIDE = 512  # boxes are found in heatmaps of this longer side
_ARRAYS = ("times", "silent", "scores", "presence", "maps", "peaks", "boxes")
_COLUMNS, _WAVE_RATE, _BLOCK = 2000, 8000, 10  # of a waveform: points, samples and seconds read at once
_LINE = 48  # characters of a label in the plot


@dataclass(frozen=True, eq=False)
class Timeline:
    """The moments of a video without their images, T of them and P prompts.

    Attributes:
        times: in seconds, float64 `[T]`.
        silent: whether the own sound is silent, bool `[T]`.
        scores: float32 `[T, P]`; NaN for silence.
        presence: probability that each prompt is in the image, float32 `[T, P]`; NaN where unknown.
        maps: raw maps, float32 `[T, P, gh, gw]`.
        peaks: column and row of the hottest pixel, int64 `[T, P, 2]`.
        boxes: `(x0, y0, x1, y1)` around the largest part of the heatmap above 0.5, int64 `[T, P, 4]`; found in heatmaps
            of `BOX_SIDE` pixels.
    """

    times: np.ndarray
    silent: np.ndarray
    scores: np.ndarray
    presence: np.ndarray
    maps: np.ndarray
    peaks: np.ndarray
    boxes: np.ndarray

    @classmethod
    def of(cls, moments: Sequence[Moment]) -> Timeline:
        """Of at least one moment."""
        return cls(
            times=np.array([moment.time for moment in moments]),
            silent=np.array([moment.silent for moment in moments]),
            scores=torch.stack([moment.scores for moment in moments]).numpy(),
            presence=torch.stack([presence_of(moment) for moment in moments]).numpy(),
            maps=torch.stack([moment.maps for moment in moments]).numpy(),
            peaks=np.array([[moment.peak(index) for index in range(len(moment.prompts))] for moment in moments]),
            boxes=np.array([_boxes(moment) for moment in moments]),
        )

    @classmethod
    def joined(cls, parts: Sequence[Timeline]) -> Timeline:
        """Timelines that follow each other, as one."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS))

    @classmethod
    def read(cls, path: Path) -> Timeline:
        """What `write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(*(file[name] for name in _ARRAYS))

    def write(self, path: Path, **more: Any) -> Path:
        """Writes the arrays as an .npz, and further ones."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return write_atomic(path, lambda file: np.savez_compressed(file, **arrays, **more))

    def __len__(self) -> int:
        return len(self.times)

    def heat(self, index: int) -> Tensor:
        """The raw maps of moment `index`, `[P, gh, gw]`."""
        return torch.from_numpy(self.maps[index])

    def rows(self, prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A row for each moment and prompt: time, prompt, modality, score, presence, silent, peak and box.

        Args:
            prompts: "label" and "modality" of each.
        """
        return [
            {
                "time": round(float(self.times[k]), 6),
                "prompt": prompt["label"],
                "modality": prompt["modality"],
                "score": None if math.isnan(self.scores[k, p]) else round(float(self.scores[k, p]), 6),
                "presence": None if math.isnan(self.presence[k, p]) else round(float(self.presence[k, p]), 6),
                "silent": bool(self.silent[k]) and math.isnan(self.scores[k, p]),
                **_places(self.peaks[k, p], self.boxes[k, p], math.isnan(self.scores[k, p])),
            }
            for k in range(len(self))
            for p, prompt in enumerate(prompts)
        ]


def presence_of(moment: Moment) -> Tensor:
    """The presence of the prompts, `[P]`; NaN where it is unknown."""
    return torch.full_like(moment.scores, math.nan) if moment.presence is None else moment.presence


def _boxes(moment: Moment) -> list[tuple[int, int, int, int]]:
    small = moment.resized(BOX_SIDE)
    right, down = moment.image.width / small.image.width, moment.image.height / small.image.height
    found = []
    for index, boxes in enumerate(small.boxes(0.5)):
        x0, y0, x1, y1 = boxes[0] if boxes and moment.explains(index) else (0, 0, 0, 0)
        found.append((round(x0 * right), round(y0 * down), round(x1 * right), round(y1 * down)))
    return found


def _places(peak: np.ndarray, box: np.ndarray, missing: bool) -> dict[str, int | None]:
    names = ("peak_x", "peak_y", "box_x0", "box_y0", "box_x1", "box_y1")
    values = [*peak.tolist(), *box.tolist()]
    return {name: None if missing else value for name, value in zip(names, values, strict=True)}


def write_tables(
    folder: Path, timeline: Timeline, prompts: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> list[Path]:
    """Writes `timeline.parquet` and `timeline.json`: the rows, and in the JSON what they depend on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = timeline.rows(prompts)
    kinds = {"time": pa.float64(), "prompt": pa.string(), "modality": pa.string(), "score": pa.float32()}
    kinds["presence"] = pa.float32()
    places = {name: pa.int32() for name in rows[0] if name.startswith(("peak_", "box_"))}
    schema = pa.schema([*kinds.items(), ("silent", pa.bool_()), *places.items()])
    clean = [{**row, "prompt": row["prompt"].encode(errors="replace").decode()} for row in rows]
    table = pa.Table.from_pylist(clean, schema)
    document = {**about, "moments": rows}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return [
        write_atomic(folder / "timeline.parquet", partial(pq.write_table, table)),
        write_atomic(folder / "timeline.json", (text + "\n").encode(errors="backslashreplace")),
    ]


def waveform(video: Video, track: int = 0) -> np.ndarray:
    """The smallest and largest sample of a sound track in `_COLUMNS` equal parts of the video, `[2, columns]`."""
    columns = min(_COLUMNS, max(1, int(video.duration * _WAVE_RATE)))
    edges = np.linspace(0, video.duration * _WAVE_RATE, columns + 1).astype(int)
    ranges = np.zeros((2, columns), np.float32)
    with SoundReader(video, _WAVE_RATE, min(track, video.num_tracks - 1), channels=1) as sound:
        for begin in range(0, edges[-1], _BLOCK * _WAVE_RATE):
            piece = sound.read_rest(begin, min(begin + _BLOCK * _WAVE_RATE, edges[-1])).numpy()[0]
            if not piece.size:
                break
            place = np.searchsorted(edges, np.arange(begin, begin + piece.size), side="right") - 1
            np.minimum.at(ranges[0], place, piece)
            np.maximum.at(ranges[1], place, piece)
    return ranges


def plot(
    timeline: Timeline, prompts: Sequence[Mapping[str, Any]], duration: float, wave: np.ndarray | None, path: Path
) -> Path:
    """Writes `timeline.png`: the scores over time, a line for each prompt, over the waveform; silence is shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.8, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if wave is not None:
        behind = axes.twinx()
        behind.fill_between(np.linspace(0, duration, wave.shape[1]), wave[0], wave[1], color="0.85", linewidth=0)
        top = max(float(np.abs(wave).max()), 1e-9)
        behind.set(ylim=(-top, top), yticks=[])
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
    step = float(np.median(np.diff(timeline.times))) if len(timeline) > 1 else duration
    axes.fill_between(
        timeline.times + step / 2,
        0,
        1,
        where=timeline.silent,
        step="mid",
        transform=axes.get_xaxis_transform(),
        color="0.93",
        linewidth=0,
    )
    for index, prompt in enumerate(prompts):
        color = np.array(PALETTE[index % len(PALETTE)]) / 255 * 0.85
        label = prompt["label"] if len(prompt["label"]) <= _LINE else prompt["label"][: _LINE - 1] + "…"
        label = label.encode(errors="replace").decode().replace("$", r"\$")
        axes.plot(timeline.times, timeline.scores[:, index], color=tuple(color), label=label, linewidth=1.8)
    axes.set(xlim=(0, max(duration, step)), xlabel="time in seconds", ylabel="score")
    if len(prompts) <= len(PALETTE):
        axes.legend(loc="upper right", frameon=True)
    return write_atomic(path, partial(figure.savefig, format="png"))
