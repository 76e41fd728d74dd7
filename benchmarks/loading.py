"""How long loading imagebind_huge takes, beside reading its bytes: `python -m benchmarks.speed --load`."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from avgrad.models.checkpoints import byte_offsets, check_layout, open_checkpoint
from avgrad.models.imagebind import ImageBind
from benchmarks.timing import time_in_turns

TOWERS = ("vision", "audio")


# ------------------------------------------------------------------ a checkpoint of random numbers


def save_random_checkpoint(path: Path, shapes: Mapping[str, Sequence[int]], seed: int = 0) -> None:
    """Writes a `.pth` file of float32 random numbers.

    Args:
        path: the file.
        shapes: the keys and their shapes.
        seed: of the random numbers.
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
    """Where tensors' bytes lie in a checkpoint file: (offset, length) of each, ascending.

    Args:
        path: the file.
        shapes: the keys of the tensors, and their shapes.

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
        tensor.reshape(-1)[:: 4096 // tensor.itemsize].sum()  # one number of each page
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
    """Reads the bytes of the ranges by plain readinto(), all into the same small memory."""
    memory = memoryview(bytearray(max(length for _, length in ranges)))
    with open(path, "rb", buffering=0) as file:
        for offset, length in ranges:
            file.seek(offset)
            file.readinto(memory[:length])


@dataclass(frozen=True)
class LoadReport:
    """What was timed.

    Attributes:
        title: what and how.
        seconds: the median of each row.
        ratios: for each reference row, the other rows' seconds over its own.
    """

    title: str
    seconds: dict[str, float]
    ratios: dict[str, dict[str, float]]

    def tables(self) -> str:
        """One line for each row: seconds, then its ratio to each reference."""
        lines = [
            self.title,
            f"{'':30}{'seconds':>10}" + "".join(f"{'/ ' + name:>26}" for name in self.ratios),
        ]
        for name, value in self.seconds.items():
            ratios = (column.get(name) for column in self.ratios.values())
            lines.append(
                f"{name:30}{value:10.3f}" + "".join(" " * 26 if ratio is None else f"{ratio:26.2f}" for ratio in ratios)
            )
        return "\n".join(lines)


def measure_load(path: Path, repeats: int) -> LoadReport:
    """Loading vision and audio against reading their bytes.

    Args:
        path: an imagebind_huge checkpoint.
        repeats: how often each is timed.

    Raises:
        CheckpointError: the file is no imagebind_huge checkpoint.
    """
    shapes = ImageBind(towers=TOWERS).shapes
    ranges = byte_ranges(path, shapes)
    size = sum(length for _, length in ranges)
    times = time_in_turns(
        {
            "read() into memory": lambda: read(path, ranges),
            "readinto() one buffer": lambda: read_and_drop(path, ranges),
            "load float32, pages touched": lambda: load(path, torch.float32),
            "load bfloat16": lambda: load(path, torch.bfloat16),
        },
        repeats,
    )
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return LoadReport(
        title=f"vision + audio of imagebind_huge, {size / 1e9:.2f} GB in the file; page cache warm for all; "
        f"medians of {repeats} turns",
        seconds=seconds,
        ratios={
            reference: {name: value / seconds[reference] for name, value in seconds.items() if "load" in name}
            for reference in ("read() into memory", "readinto() one buffer")
        },
    )


def measure_load_of(checkpoint: Path | None, repeats: int) -> LoadReport:
    """`measure_load` of a checkpoint, or where there is none of a temporary one with random numbers."""
    if checkpoint is not None:
        return measure_load(checkpoint, repeats)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imagebind_huge.pth"
        save_random_checkpoint(path, ImageBind().shapes)
        return measure_load(path, repeats)
