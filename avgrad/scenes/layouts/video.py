"""Synthetic videos with their truth, for the benchmark video-scenes."""

from __future__ import annotations

from pathlib import Path

from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series
from avgrad.scenes.video_dataset import write_index, write_video_item


@layout("video")
def write(folder: Path, series: Series) -> None:
    """A video for each number, and their list."""
    write_index(folder, [write_video_item(folder, index, series.seed, series.size) for index in series])
