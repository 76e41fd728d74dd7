"""AttentionCAM: GradCAM on the last layer's attention, its heads in the place of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avgrad.engine.methods import Pooling, last_layer, method
from avgrad.engine.trace import as_maps, first_row, gradients, in_chunks, pooled_row, trace
from avgrad.engine.view import ViTView


@method("attentioncam", explains=last_layer)
@torch.no_grad()
@in_chunks
def attentioncam(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    layers: Sequence[int],
    pooling: Pooling = "mean",
    *,
    whole_matrix: bool = False,
) -> Tensor:
    """AttentionCAM (Bousselham et al. 2025, Eq. 11; it goes back to a baseline of Chefer et al. 2020).

    Of the pooled row a of the attention: `w_k = mean_j(ds/da_kj)` over the patches j, `E_j = relu(mean_k(w_k a_kj))`.
    Our reading: s is the model's own score; the attention is that of the last of `layers`; the row is the class
    token's, the mean of the patches' rows where the model pools by the mean, or the attentional pooler's own.

    Args: as `avgrad.engine.legrad.legrad`; `pooling` is ignored.
        whole_matrix: read Eq. 11 literally: `w_k` is the mean over the whole attention matrix, and negative values
            stay. The default is as GradCAM does it.

    Returns:
        `[B, P, 1, patches]`, at least float32; 0 or more, or of either sign with `whole_matrix`.
    """
    traced = trace(view, pixels, [max(layers)])
    tokens, start, pooler = traced.inputs[0].shape[1], view.num_prefix_tokens, traced.pooler_attention
    attention = traced.attentions[0] if pooler is None else pooler
    maps = []
    for (gradient,) in gradients(traced.output, [attention], prompts):
        if pooler is None:
            derivatives, row = (pooled_row(view, matrix) for matrix in (gradient, attention.detach()))
        else:
            derivatives, row = (first_row(view, tokens, matrix.mean(2)) for matrix in (gradient, attention.detach()))
        if whole_matrix:
            maps.append(as_maps(view, (gradient.mean((-2, -1))[..., None] * row).mean(1)))
        else:
            weights = derivatives[..., start:].mean(-1, keepdim=True)
            maps.append(as_maps(view, (weights * row).mean(1).relu()))
    return torch.stack(maps, dim=1)[:, :, None]
