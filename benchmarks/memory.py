"""Peak memory of one row, in a process of its own: `python -m benchmarks.memory SPECIFICATION`.

It is the largest resident memory of the process while the row runs, minus its resident memory with only the model's
weights loaded. The first run counts, with the program code that it reads and the buffers that libraries allocate once,
because a single run pays for them too; three more runs count because an allocator may place the same tensors less
well. On a GPU it is the peak of torch's allocator.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.device import use
from benchmarks.models import build
from benchmarks.rows import Row, task

RUNS = 4
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class NotMeasuredError(RuntimeError):
    """Peak memory cannot be measured; the message says why."""


@dataclass(frozen=True)
class Memory:
    """Memory in bytes.

    Attributes:
        peak: the largest memory above that before the first run.
        code: the part of it that is program code and other mapped files; 0 on a GPU.
    """

    peak: int
    code: int


@dataclass(frozen=True)
class Specification:
    """What a process measures.

    Attributes:
        model, device, dtype: as on the command line.
        threads: CPU threads.
        row: the row.
    """

    model: str
    device: str
    dtype: str
    threads: int
    row: Row


def _resident() -> dict[str, int]:
    """Resident memory of this process in bytes: "VmHWM" (the peak), "VmRSS" (now) and its part "RssFile"."""
    lines = (line.partition(":") for line in _STATUS.read_text().splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines if name in ("VmHWM", "VmRSS", "RssFile")}


def measure(run: Callable[[], object], device: torch.device) -> Memory:
    """Peak memory of a function that is called `RUNS` times.

    Args:
        run: the function.
        device: where it computes.

    Raises:
        NotMeasuredError: the system does not report it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(RUNS):
            run()
        torch.cuda.synchronize(device)
        return Memory(torch.cuda.max_memory_allocated(device) - before, 0)
    if device.type != "cpu":
        raise NotMeasuredError(f"peak memory on {device.type} cannot be measured; cpu and cuda are supported")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory freed while the model was built must not be reused unseen
        _CLEAR.write_text("5")  # resets VmHWM
        start = _resident()
    except (OSError, AttributeError, TypeError):
        raise NotMeasuredError("this system does not report a process's peak memory; Linux does") from None
    for _ in range(RUNS):
        run()
    end = _resident()
    return Memory(end["VmHWM"] - start["VmRSS"], max(0, end["RssFile"] - start["RssFile"]))


def measure_apart(specification: Specification) -> Memory:
    """Peak memory of a row, measured in a new process.

    Raises:
        NotMeasuredError: the system does not report it, or there was not enough memory.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(specification))],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["the process was killed, most likely out of memory"])[-1]
        raise NotMeasuredError(f"no peak memory of {specification.row.label!r}: {reason}")
    return Memory(**json.loads(done.stdout))


def main(text: str) -> int:
    """Measures a `Specification` given as JSON and prints a `Memory` as JSON; returns the exit status."""
    values = json.loads(text)
    specification = Specification(**{**values, "row": Row(**values["row"])})
    row = specification.row
    torch.set_num_threads(specification.threads)
    device, dtype = use(specification.device, specification.dtype)
    ready = task(build(specification.model, device, dtype), row)
    if row.compiled:
        ready.run()  # the compiler's own memory does not count

    def keep_and_run() -> None:
        if not kept:
            kept.append(ready.keep())
        ready.run()

    kept: list[object] = []
    try:
        memory = measure(keep_and_run, device)
    except NotMeasuredError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(memory)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
