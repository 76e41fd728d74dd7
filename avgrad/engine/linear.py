"""Products of activations with weights, by the fastest library that torch has on board."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# On x86 processors torch hands float32 matmul to MKL, slow on those that are not Intel's (see docs/performance.md).
# oneDNN, which torch has on board for its convolutions, uses AVX-512 wherever there is any.
_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # which cannot lower this product
        and bool(torch.backends.mkldnn.enabled)
        and (weight.is_contiguous() or weight.T.is_contiguous())  # any other takes a thousand times as long
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, as `torch.nn.functional.linear`.

    float32 matmul on a CPU with AVX-512 go to oneDNN, unless a graph is being built or `torch.backends.mkldnn.flags`
    turns oneDNN off. They sum up in another order than MKL's, so the last digits differ.

    Args:
        x: `[..., in]`.
        weight: `[out, in]`; it may be the transpose of a contiguous tensor.
        bias: `[out]`, or None.

    Returns:
        `[..., out]`.
    """
    if _by_onednn(x, weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y.mT`, of matrices `[g, a, w]` and `[g, b, w]`: `[g, a, b]`. A single pair goes where `linear` goes."""
    return linear(x, y[0]) if len(y) == 1 else x @ y.mT
