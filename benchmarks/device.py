"""Device and dtype of a measurement, and the environment that a report states beside its figures."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from avgrad.errors import InputError

# "tf32" is float32 whose matmuls run on a GPU's tensor cores with a mantissa of 10 bits
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class OptionError(InputError):
    """An option of the command line that cannot be used."""


def use(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that the command line names; on CUDA, TF32 is switched on or off by it.

    Args:
        device: such as "cpu", "cuda" and "cuda:1".
        dtype: one of `DTYPES`.

    Raises:
        OptionError: the device is not available, the dtype is unknown, or the device does not support it.
    """
    if dtype not in DTYPES:
        raise OptionError(f"--dtype {dtype} is unknown; expected one of {', '.join(DTYPES)}")
    try:
        chosen = torch.empty(1, device=device).device
    except (RuntimeError, AssertionError, ImportError):  # each backend refuses in its own way
        raise OptionError(f"--device {device} is not available on this machine; cpu is") from None
    if chosen.type == "meta":
        raise OptionError("--device meta computes nothing; expected a device such as cpu or cuda")
    if dtype == "tf32" and chosen.type != "cuda":
        raise OptionError(f"--dtype tf32 needs an NVIDIA GPU, and --device is {device}; use --dtype float32")
    if chosen.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    return chosen, DTYPES[dtype]


def device_name(device: torch.device) -> str:
    """The name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def environment(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on besides the code: device, threads and versions."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("open_clip_torch", "timm", "legrad_torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": versions,
    }
