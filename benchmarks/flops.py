"""Floating-point operations: those that run, counted, and the fewest that LeGrad in closed form needs.

Only matmuls, convolutions and attention count. Elementwise operations (activations, norms, ReLU and sums) are little
arithmetic, though not always little time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from avgrad.engine.blocks import PreNorm
from avgrad.engine.heads import Tail
from avgrad.engine.mlp import Mlp
from avgrad.engine.parts import Linear
from avgrad.engine.view import ViTView


def _linear_pointwise(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * weight[0]


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _uncounted_by_torch() -> dict[Any, Callable[..., int]]:
    """Formulas that torch's counter lacks: fused attention on a CPU, and oneDNN's linear layer where torch has it."""
    formulas: dict[Any, Callable[..., int]] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        formulas[torch.ops.mkldnn._linear_pointwise] = _linear_pointwise
    return formulas


class _NoModules(AbstractContextManager[None]):
    """In place of torch's tracker of modules, whose hooks do not bear `torch.func.vjp`; only totals are asked for."""

    parents = frozenset({"Global"})

    def __exit__(self, *_: object) -> None:
        return None


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of matmuls, convolutions and attention in one run; a multiply-add counts as two."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch.nn's fused encoder layers hide their matmuls
    try:
        counter = FlopCounterMode(display=False, custom_mapping=_uncounted_by_torch())
        counter.mod_tracker = _NoModules()  # type: ignore[assignment]
        with counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def _projection(view: ViTView) -> int:
    """Multiply-adds of one token's projection."""
    return view.head.projection.weight.numel() if isinstance(view.head.projection, Linear) else 0


def _is_plain(view: ViTView) -> bool:
    """Whether the formulas below are the model's: pre-norm blocks with plain attention and MLP, and no pooler."""
    plain = all(type(b) is PreNorm and b.attn.is_plain and type(b.mlp) is Mlp for b in view.blocks)
    return plain and view.pooler is None and not isinstance(view.head.projection, Tail)


def _tokens(view: ViTView, size: int) -> tuple[int, int]:
    """Tokens of a square image with `size` pixels a side, and how many of them are patches."""
    patches = math.prod(size // side for side in view.patch_shape)
    return view.num_prefix_tokens + patches, patches


def forward_flops(view: ViTView, size: int) -> int:
    """Operations of one image's plain forward pass in a model that does not pool by attention.

    Per block with n tokens of width d and an MLP of width m: `n (4 d^2 + 2 d m)` multiply-adds in its matmuls with
    weights and `2 n^2 d` in attention; before the blocks the patches, behind them the projection.

    Args:
        view: the model.
        size: side of the square image in pixels.
    """
    tokens, patches = _tokens(view, size)
    total = 0
    for block in view.blocks:
        hidden, width = block.hidden, block.width
        total += tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    total += patches * view.blocks[0].width * 3 * math.prod(view.patch_shape)
    total += _projection(view)
    return 2 * total


def explanation_flops(view: ViTView, size: int, prompts: int) -> int:
    """Operations of LeGrad in closed form beyond the forward pass, for all layers, mean pooling and one image.

    Per block and prompt `n (d m + d^2)` multiply-adds back through W_1 and W_o, `n^2 d` for U V^T, and for the one
    vector that all tokens share its way back through the projection (D d) and W_2 (d m). Per block, whatever the number
    of prompts, the layer's embedding (D d).

    Args:
        view: the model; it does not pool by attention.
        size: side of the square image in pixels.
        prompts: how many.
    """
    tokens, _ = _tokens(view, size)
    projection = _projection(view)
    total = 0
    for block in view.blocks:
        hidden, width = block.hidden, block.width
        per_token = width * hidden + width**2 + tokens * width
        total += prompts * (tokens * per_token + projection + width * hidden)
        total += projection if view.head.cosine else 0
    return 2 * total


def floor(view: ViTView, size: int, prompts: int, forward_passes: int = 1) -> float | None:
    """LeGrad's arithmetic over a plain forward pass's: about 1 + 0.42 P for ViT-B/16 at 224 pixels.

    Args:
        view: the model.
        size: side of the square image in pixels.
        prompts: how many.
        forward_passes: 1, or 0 where the image is set already.

    Returns:
        The ratio; None for models that pool by attention or have other blocks, where it is another formula.
    """
    if not _is_plain(view):
        return None
    return forward_passes + explanation_flops(view, size, prompts) / forward_flops(view, size)
