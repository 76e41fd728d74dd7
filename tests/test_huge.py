"""Loading a checkpoint of imagebind_huge's true layout and size: memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from avgrad.models.checkpoints import open_checkpoint
from avgrad.models.imagebind import ImageBind
from benchmarks.speed import main

pytestmark = pytest.mark.slow

LOAD = """
import json, sys
import torch
from avgrad.models.imagebind import ImageBind

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))

path, towers, dtype = sys.argv[1], sys.argv[2].split(","), getattr(torch, sys.argv[3])
before = status("VmRSS")
model = ImageBind.from_checkpoint(path, towers=towers, dtype=dtype)
total = sum(float(parameter.sum()) for parameter in model.parameters())  # every weight is read
print(json.dumps({
    "before": before,
    "peak": status("VmHWM"),
    "size": sum(tensor.nbytes for tensor in model.state_dict().values()),
    "towers": sorted({key.split(".")[1] for key in model.state_dict()}),
    "dtypes": sorted({str(tensor.dtype) for tensor in model.state_dict().values()}),
    "finite": total == total,
}))
"""


def test_layout(huge_checkpoint: Path) -> None:
    """All six towers of the published file are there, and ours take theirs from it."""
    tensors = open_checkpoint(huge_checkpoint)
    assert sum(tensor.numel() for tensor in tensors.values()) == pytest.approx(1.2e9, rel=0.01)
    towers = {key.split(".")[1] for key in tensors}
    assert towers == {"vision", "text", "audio", "depth", "thermal", "imu"}
    shapes = ImageBind().shapes
    ours = {key for key in tensors if key.split(".")[1] in ("vision", "text", "audio")}
    assert ours == set(shapes)
    assert all(tensors[key].shape == shape for key, shape in shapes.items())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to ask for the peak memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("towers", ["vision,audio", "vision,audio,text", "audio", "text"])
def test_peak_memory(towers: str, dtype: str, huge_checkpoint: Path) -> None:
    """The peak above what the imports took is at most 1.25 times the towers' size, mapped pages included."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(huge_checkpoint), towers, dtype],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert figures["towers"] == sorted(towers.split(",")) and figures["dtypes"] == [f"torch.{dtype}"]
    assert figures["finite"]
    ratio = (figures["peak"] - figures["before"]) / figures["size"]
    print(f"{towers} in {dtype}: {figures['size'] / 1e9:.2f} GB, peak {ratio:.3f} of it")
    assert ratio <= 1.25
    assert ratio >= 0.9  # or the weights were not read, and the test is wrong


def test_load_benchmark(huge_checkpoint: Path, tmp_path: Path) -> None:
    """Loading takes at most twice as long as reading the same bytes into memory."""
    report = tmp_path / "speed.json"
    assert main(["--load", "--checkpoint", str(huge_checkpoint), "--rounds", "3", "--json", str(report)]) == 0
    ratios = json.loads(report.read_text())["ratios"]["read() into memory"]
    assert set(ratios) == {"load float32, pages touched", "load bfloat16"}
    assert max(ratios.values()) <= 2.0
