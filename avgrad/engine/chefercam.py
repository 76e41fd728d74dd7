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


def _normalized(relevance: Tensor) -> Tensor:
    """`I + (R - I)`, the rows of `R - I` brought to sum 1, of R `[B, n, n]` (Chefer et al. 2021, Eqs. 8 and 9)."""
    identity = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    gathered = relevance - identity
    total = gathered.sum(-1, keepdim=True)
    return identity + torch.where(total == 0, 0, gathered / total)


@method("chefercam")
@torch.no_grad()
@in_chunks
def chefercam(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    layers: Sequence[int],
    pooling: Pooling = "mean",
    *,
    scale: float = 1.0,
) -> Tensor:
    """The relevance of each patch to the pooled token (Chefer et al. 2021, Eqs. 5 and 6).

    `R = I` at first; from layer to layer `R <- R + M_l R`, `M_l = mean_k(relu(ds/dA_lk * A_lk))`. The map is the class
    token's row of R. Our reading: s is the model's own score, with no softmax over prompts; where the model pools by
    the mean, the map is the mean of the patches' rows; an attentional pooler is a decoder's cross attention without a
    skip connection (Bousselham et al. 2025, B.4): its M times R, whose rows are normalized first as that of the
    encoder is for DETR (Eqs. 8 to 10).

    Args: as `avgrad.engine.legrad.legrad`; only `layers` update R; `pooling` is ignored.
        scale: factor of the score. The map depends on it, since M is added to I. The authors explain logits; those of
            CLIP are cosines times 100.

    Returns:
        `[B, P, 1, patches]`, at least float32, 0 or more.
    """
    traced = trace(view, pixels, layers)
    tokens = traced.inputs[0].shape[1]
    pooler = [] if traced.pooler_attention is None else [traced.pooler_attention]
    maps = []
    for found in gradients(traced.output, [*traced.attentions, *pooler], prompts):
        pairs = zip(found, traced.attentions, strict=False)
        matrices = [relevant(gradient * scale, attention) for gradient, attention in pairs]
        if pooler:
            row = first_row(view, tokens, relevant(found[-1] * scale, pooler[0]).mean(1))
            relevance = torch.eye(tokens, dtype=row.dtype, device=row.device).expand(len(pixels), -1, -1)
            for matrix in matrices:
                relevance = relevance + matrix @ relevance
            row = (row[:, None] @ _normalized(relevance))[:, 0]
        else:
            row = first_row(view, tokens).expand(len(pixels), -1)
            # one row of the product of all I + M_l is wanted: a vector goes through it from its left end
            for matrix in reversed(matrices):
                row = row + (row[:, None] @ matrix)[:, 0]
        maps.append(as_maps(view, row))
    return torch.stack(maps, dim=1)[:, :, None]
