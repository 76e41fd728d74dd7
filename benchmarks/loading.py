"""Time to load imagebind_huge, beside that of reading its bytes: `python -m benchmarks.speed --load`."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from avgrad.models.checkpoints import byte_offsets, check_layout, open_checkpoint
from avgrad.models.imagebind import ImageBind
from benchmarks.tables import markdown
from benchmarks.timing import time_in_rounds

TOWERS = ("vision", "audio")


# ------------------------------------------------------------------ a checkpoint of random weights


def save_random_checkpoint(path: Path, shapes: Mapping[str, Sequence[int]], seed: int = 0) -> None:
    """Writes a `.pth` file of random float32 tensors.

    Args:
        path: the file.
        shapes: the keys and their shapes.
        seed: of the random generator.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        tensor = torch.empty(torch.Size(shape)).uniform_(-0.05, 0.05, generator=generator)
        if tensor.ndim == 1 and key.endswith("weight"):  # LayerNorms scale by about 1
            tensor += 1
        state[key] = tensor
    torch.save(state, path)


# ------------------------------------------------------------------ loading


def byte_ranges(path: Path, shapes: Mapping[str, Sequence[int]]) -> list[tuple[int, int]]:
    """The byte ranges of tensors in a checkpoint file: (offset, length) of each, ascending.

    Args:
        path: the file.
        shapes: the keys and shapes of the tensors.

    Raises:
        CheckpointError: the file is no checkpoint with these tensors.
    """
    tensors = open_checkpoint(path)
    check_layout(tensors, shapes, path.name)
    offsets = byte_offsets(path, {key: tensors[key] for key in shapes})
    return sorted((offset, tensors[key].nbytes) for key, offset in offsets.items())


def load(path: Path, dtype: torch.dtype) -> ImageBind:
    """The vision and audio towers with every page of their weights in memory."""
    model = ImageBind.from_checkpoint(path, towers=TOWERS, dtype=dtype)
    for tensor in model.state_dict().values():
        tensor.reshape(-1)[:: 4096 // tensor.itemsize].sum()  # one element of each page
    return model


def read(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of the ranges, by plain read()."""
    with open(path, "rb", buffering=0) as file:
        parts = []
        for offset, length in ranges:
            file.seek(offset)
            parts.append(file.read(length))
        return parts


def read_and_drop(path: Path, ranges: Sequence[tuple[int, int]]) -> None:
    """Reads the bytes of the ranges by plain readinto(), all into the same buffer."""
    memory = memoryview(bytearray(max(length for _, length in ranges)))
    with open(path, "rb", buffering=0) as file:
        for offset, length in ranges:
            file.seek(offset)
            file.readinto(memory[:length])


@dataclass(frozen=True)
class LoadReport:
    """Load times.

    Attributes:
        title: what was measured.
        seconds: the median of each row.
        ratios: for each reference row, the other rows' seconds over its own.
    """

    title: str
    seconds: dict[str, float]
    ratios: dict[str, dict[str, float]]

    def tables(self) -> str:
        """A Markdown table: the seconds of each row, and its ratio to each reference row."""
        header = ["row", "seconds", *(f"/ {name}" for name in self.ratios)]
        rows = [
            [
                name,
                f"{value:.3f}",
                *(f"{column[name]:.2f}" if name in column else "" for column in self.ratios.values()),
            ]
            for name, value in self.seconds.items()
        ]
        return f"{self.title}\n\n{markdown(header, rows)}"


def measure_load(path: Path, rounds: int) -> LoadReport:
    """Loading vision and audio against reading their bytes.

    Args:
        path: an imagebind_huge checkpoint.
        rounds: how often each row is timed.

    Raises:
        CheckpointError: the file is no imagebind_huge checkpoint.
    """
    shapes = ImageBind(towers=TOWERS).shapes
    ranges = byte_ranges(path, shapes)
    size = sum(length for _, length in ranges)
    times = time_in_rounds(
        {
            "read() into memory": lambda: read(path, ranges),
            "readinto() one buffer": lambda: read_and_drop(path, ranges),
            "load float32, pages touched": lambda: load(path, torch.float32),
            "load bfloat16": lambda: load(path, torch.bfloat16),
        },
        rounds,
    )
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return LoadReport(
        title=f"vision + audio of imagebind_huge, {size / 1e9:.2f} GB in the file; page cache warm; "
        f"medians of {rounds} rounds",
        seconds=seconds,
        ratios={
            reference: {name: value / seconds[reference] for name, value in seconds.items() if "load" in name}
            for reference in ("read() into memory", "readinto() one buffer")
        },
    )


def measure_load_of(checkpoint: Path | None, rounds: int) -> LoadReport:
    """`measure_load` of a checkpoint, or of a temporary one with random weights if it is None."""
    if checkpoint is not None:
        return measure_load(checkpoint, rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imagebind_huge.pth"
        save_random_checkpoint(path, ImageBind().shapes)
        return measure_load(path, rounds)
