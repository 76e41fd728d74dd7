"""Matmuls of activations with weights, by the fastest library that torch has on board."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# On x86 processors torch hands float32 matmul to MKL, slow on those that are not Intel's (see docs/performance.md).
# oneDNN, which torch has on board for its convolutions, uses AVX-512 wherever there is any.
_AVX512 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _has_onednn() -> bool:
    """Whether this release of torch has the operator, with this meaning: it is private, so it is tried once."""
    if not _AVX512:
        return False
    x, weight, bias = (torch.linspace(-1, 1, n).view(shape) for n, shape in ((6, (2, 3)), (12, (4, 3)), (4, (4,))))
    try:
        return torch.allclose(_product(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-6)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False


_ONEDNN = _has_onednn()


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # which cannot lower this operator
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
        return _product(x, weight, bias)
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y.mT`, of matrices `[g, a, w]` and `[g, b, w]`: `[g, a, b]`. A single pair goes where `linear` goes."""
    return linear(x, y[0]) if len(y) == 1 else x @ y.mT
