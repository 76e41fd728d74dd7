"""Timing in rounds: only times measured beside each other, on the same machine at the same time, can be compared."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm

Key = TypeVar("Key", bound=Hashable)


def time_in_rounds(rows: Mapping[Key, Callable[[], object]], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each row by `torch.utils.benchmark`, which warms up, synchronizes the device and sets the block size.

    Args:
        rows: what to time.
        rounds: how often all rows are timed, one after the other; 1 or more.

    Returns:
        For each row, one time per round: the k-th of all rows belong together.
    """
    threads = torch.get_num_threads()
    timers = {key: Timer("run()", globals={"run": run}, num_threads=threads) for key, run in rows.items()}
    seconds: dict[Key, list[float]] = {key: [] for key in rows}
    for _ in tqdm(range(rounds), desc="rounds", leave=False, disable=None):
        for key, timer in timers.items():
            gc.collect()
            # the shortest run time: one block, after those that set its size
            seconds[key].append(timer.blocked_autorange(min_run_time=1e-9).median)
    return seconds
