"""Peak memory of a row in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory import NotMeasuredError, Specification, measure_apart
from benchmarks.rows import Row

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not report it")

KNOWN = """
import json, torch
from dataclasses import asdict
from benchmarks.memory import measure

weights = torch.ones(16, 2**20)  # 64 MiB that were there before
freed = torch.ones(16, 2**20)
del freed

def run():
    a = torch.ones({mebibytes}, 2**18)
    del a
    return torch.ones({mebibytes} // 2, 2**18)

print(json.dumps(asdict(measure(run, torch.device("cpu")))))
"""


@pytest.mark.parametrize("mebibytes", [64, 256])
def test_known_allocation(mebibytes: int) -> None:
    """What is allocated and freed again counts once, at its largest; what was there before does not count."""
    done = subprocess.run(
        [sys.executable, "-c", KNOWN.format(mebibytes=mebibytes)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    memory = json.loads(done.stdout)
    assert memory["peak"] == pytest.approx(mebibytes * 2**20, abs=3 * 2**20)
    assert memory["code"] < 3 * 2**20


@pytest.mark.slow
def test_a_row_of_many_prompts() -> None:
    """A further prompt pays for what is kept of the image."""
    plain, further = (
        measure_apart(Specification("mini", "cpu", "float32", 1, row))
        for row in (Row("plain", 256), Row("further", 256, method="legrad", prompts=1))
    )
    assert 0 < plain.peak < further.peak < 2**29


def test_what_goes_wrong_is_told() -> None:
    with pytest.raises(NotMeasuredError, match=r"no peak memory of 'plain forward': .*there is no model 'nothing'"):
        measure_apart(Specification("nothing", "cpu", "float32", 1, Row("plain", 64)))
