"""Where and in which numbers is computed: devices, number types, and what a report says about both."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

# "tf32" is float32 whose products a GPU's tensor cores round to 10 bits
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class OptionError(ValueError):
    """An option asks for what is not there; the message says in one sentence for what, and what there is."""


def use(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and the type of numbers that the command line names; on CUDA, TF32 is switched on or off by it.

    Args:
        device: such as "cpu", "cuda" and "cuda:1".
        dtype: one of `DTYPES`.

    Raises:
        OptionError: they are not to be had.
    """
    if dtype not in DTYPES:
        raise OptionError(f"--dtype {dtype} is none of {', '.join(DTYPES)}")
    try:
        chosen = torch.empty(1, device=device).device
    except (RuntimeError, AssertionError):
        raise OptionError(f"--device {device} is not on this machine; cpu is, for example") from None
    if dtype == "tf32" and chosen.type != "cuda":
        raise OptionError(f"--dtype tf32 is of GPUs by NVIDIA, and --device is {device}; float32 is meant, perhaps")
    if chosen.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    return chosen, DTYPES[dtype]


def device_name(device: torch.device) -> str:
    """What the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def surroundings(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the code: the device, threads and versions."""
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
