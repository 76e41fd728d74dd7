"""The `device` and `dtype` arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from avgrad.errors import InputError, out_of_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_device(device: torch.device | str) -> torch.device:
    """The device of this name.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", ... or a `torch.device`.

    Raises:
        InputError: there is no such device, or this machine or this torch cannot compute on it.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()  # the meta device and backends that are not installed fail here
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"device={str(device)!r} is not available here; 'cpu' is, for example") from None
    return found


def resolve_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """The dtype of this name.

    Args:
        dtype: "float32", "bfloat16", "float16", "float64" or the `torch.dtype`; "auto" for bfloat16 where the device
            computes it natively, else float32.
        device: where the model is to compute.

    Raises:
        InputError: any other dtype.
    """
    if dtype == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        name = str(dtype).removeprefix("torch.")
        raise InputError(f"dtype={name!r} is not accepted; expected 'auto' or one of {', '.join(map(repr, DTYPES))}")
    return found


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type == "cpu":
        # torch.cpu.get_capabilities is new; the private functions are older. Where neither is, float32 is always right.
        if hasattr(torch.cpu, "get_capabilities"):
            found = torch.cpu.get_capabilities()
            return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))
    return False


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Sets the number of PyTorch's CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
