"""Whether bfloat16 is worth it on a device: where it computes it natively, and a short measurement finds it faster.

The measurement is kept in the cache folder (`cache_folder() / "dtypes.json"`), for each device, version of torch and
number of threads; deleting the file measures again.
"""

from __future__ import annotations

import json
import math
import platform
import re
import time
from pathlib import Path

import torch
from filelock import FileLock

from avgrad.files import write_atomic
from avgrad.models.checkpoints import cache_folder

GAIN = 1.2  # a smaller speed-up is not worth the digits
_SHAPES = ((394, 768, 3072), (394, 3072, 768))  # the MLP of ViT-B/16 over two images
_ROUNDS = 5


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether matmuls in bfloat16 are faster on a device by `GAIN` or more; the first time takes some milliseconds."""
    if not has_bfloat16(device):
        return False
    key = f"{device_name(device)}, torch {torch.__version__}"
    if device.type == "cpu":
        key += f", {torch.get_num_threads()} threads"
    path = cache_folder() / "dtypes.json"
    kept = _read(path)
    if key not in kept:
        kept = {key: measure(device)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                kept = {**_read(path), **kept}
                write_atomic(path, (json.dumps(kept, indent=1) + "\n").encode())
        except OSError:
            pass  # a cache that cannot be written is measured again the next time
    return kept[key] >= GAIN


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type == "mps":
        try:
            return torch.backends.mps.is_macos_or_newer(14, 0)
        except AttributeError:  # older torch
            return False
    if device.type == "cpu":
        # torch.cpu.get_capabilities is new; the private functions are older. Where neither is, float32 is always right.
        if hasattr(torch.cpu, "get_capabilities"):
            found = torch.cpu.get_capabilities()
            return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
    return False


def measure(device: torch.device) -> float:
    """How many times faster a transformer's matmuls are in bfloat16 than in float32: of several rounds the fastest."""
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    matrices = {
        dtype: [[torch.full(s, 0.5, dtype=dtype, device=device) for s in (shape[:2], shape[1:])] for shape in _SHAPES]
        for dtype in seconds
    }
    for _ in range(_ROUNDS):
        for dtype, pairs in matrices.items():
            start = time.perf_counter()
            total = sum(float((left @ right)[0, 0]) for left, right in pairs)  # reading a value waits for a GPU
            assert math.isfinite(total)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def device_name(device: torch.device) -> str:
    """The name of a processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return f"{device.type} {found[1] if found else platform.processor() or platform.machine()}"


def _read(path: Path) -> dict[str, float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged: it is measured and written again
        return {}
