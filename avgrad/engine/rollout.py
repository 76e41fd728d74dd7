"""Attention rollout: attention multiplied through the layers. It knows nothing of the prompt: a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avgrad.engine.methods import Pooling, method
from avgrad.engine.trace import as_maps, first_row, in_chunks
from avgrad.engine.view import ViTView


@method("rollout")
@torch.no_grad()
@in_chunks
def rollout(view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean") -> Tensor:
    """How much of each patch's input reaches the pooled token (Abnar and Zuidema 2020, section 3, "Attention rollout").

    `rollout = A_L ... A_2 A_1` with `A_l = (mean_k(A_lk) + I)`, its rows normalized to sum 1. Our reading: heads are
    averaged, and the map is the row that the model pools (the class token's; the mean of the patches' rows where it
    pools by the mean; where it pools by attention, the pooler's own attention, heads averaged and without an identity,
    times the product).

    Args: as `avgrad.engine.legrad.legrad`; only `layers` are multiplied; `pooling` is ignored.

    Returns:
        `[B, P, 1, patches]`, at least float32, in [0, 1], the same for every prompt.
    """
    wanted, matrices, grid = frozenset(layers), [], view.grid(pixels)
    x = view.embed(pixels.to(view.device, view.dtype))
    for index, block in enumerate(view.blocks):
        if index in wanted:
            attention = block.attention(x, grid)[0].mean(1)
            matrices.append(attention + torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
        x = block(x, grid)
    pooler_row = None
    if view.pooler is not None:
        pooler_row = view.pooler.matrix(view.pooler_input(x))[0].mean((1, 2))
    row = first_row(view, x.shape[1], pooler_row).expand(len(x), -1)
    # one row is wanted: a vector goes through the product from its left end
    for matrix in reversed(matrices):
        row = (row[:, None] @ (matrix / matrix.sum(-1, keepdim=True)))[:, 0]
    return as_maps(view, row)[:, None, None].expand(-1, prompts.shape[1], -1, -1)
