"""Timing in turns: only what ran beside each other, on the same machine at the same time, can be compared."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from tqdm import tqdm

Key = TypeVar("Key", bound=Hashable)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_in_turns(
    rows: Mapping[Key, Callable[[], object]], repeats: int, device: torch.device | None = None
) -> dict[Key, list[float]]:
    """Seconds of each row: one turn of all of them to warm up, then `repeats` turns that count.

    What a row returns is kept until its clock has stopped, and nothing else is freed while it runs.

    Args:
        rows: what to time.
        repeats: 1 or more.
        device: where rows compute, to be waited for; None for the CPU.

    Returns:
        For each row, `repeats` times in the order of the turns: the k-th of all rows belong together.
    """
    device = device or torch.device("cpu")
    seconds: dict[Key, list[float]] = {key: [] for key in rows}
    for turn in tqdm(range(repeats + 1), desc="turns", leave=False, disable=None):
        for key, run in rows.items():
            gc.collect()
            synchronize(device)
            start = time.perf_counter()
            result = run()
            synchronize(device)
            elapsed = time.perf_counter() - start
            del result
            if turn:
                seconds[key].append(elapsed)
    return seconds
