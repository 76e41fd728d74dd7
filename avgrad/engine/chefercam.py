"""CheferCAM: attention times its gradient, gathered over the layers (generic attention explainability)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avgrad.engine.methods import Pooling, method
from avgrad.engine.trace import as_maps, first_row, gradients, in_chunks, trace
from avgrad.engine.view import ViTView


def relevant(gradient: Tensor, attention: Tensor) -> Tensor:
    """`mean_k(relu(ds/dA_k * A_k))`, `[B, r, n]` from two `[B, h, r, n]` (Chefer et al. 2021, Eq. 5)."""
    return (gradient * attention.detach()).relu_().mean(1)


@method("chefercam")
@torch.no_grad()
@in_chunks
def chefercam(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """The relevance of each patch to the pooled token (Chefer et al. 2021, Eqs. 5 and 6).

    `R = I` at first; from layer to layer `R <- R + M_l R`, `M_l = mean_k(relu(ds/dA_lk * A_lk))`. The map is the class
    token's row of R. Our reading: s is the model's own score, with no softmax over prompts; where the model pools by
    the mean, the map is the mean of the patches' rows; an attentional pooler is a decoder's cross attention without a
    skip connection (Bousselham et al. 2025, B.4): its M times R.

    Args: as `avgrad.engine.legrad.legrad`; only `layers` update R; `pooling` is ignored here, since s is the
        model's own.

    Returns:
        `[B, P, 1, patches]`, at least float32, 0 or more.
    """
    traced = trace(view, pixels, layers)
    tokens = traced.inputs[0].shape[1]
    pooler = [] if traced.pooler_attention is None else [traced.pooler_attention]
    maps = []
    for found in gradients(traced.output, [*traced.attentions, *pooler], prompts):
        pooler_row = relevant(found[-1], pooler[0]).mean(1) if pooler else None
        row = first_row(view, tokens, pooler_row).expand(len(pixels), -1)
        # one row of the product of all I + M_l is wanted: a vector goes through it from its left end
        for gradient, attention in zip(found[len(traced.attentions) - 1 :: -1], traced.attentions[::-1], strict=True):
            row = row + (row[:, None] @ relevant(gradient, attention))[:, 0]
        maps.append(as_maps(view, row))
    return torch.stack(maps, dim=1)[:, :, None]
