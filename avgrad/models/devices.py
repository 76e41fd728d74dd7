"""The `device` and `dtype` arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from avgrad.errors import InputError, out_of_memory
from avgrad.models.half_precision import prefers_bfloat16

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
        return torch.bfloat16 if prefers_bfloat16(device) else torch.float32
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        name = str(dtype).removeprefix("torch.")
        raise InputError(f"dtype={name!r} is not accepted; expected 'auto' or one of {', '.join(map(repr, DTYPES))}")
    return found


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Sets the number of PyTorch's CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
