"""LeGrad with one score for all layers: an ablation of the paper, which scores each layer by its own output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from avgrad.engine.methods import Pooling, method
from avgrad.engine.trace import as_maps, gradients, in_chunks, trace
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError


@method("legrad_last")
@torch.no_grad()
@in_chunks
def legrad_last(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    layers: Sequence[int],
    pooling: Pooling = "mean",
    *,
    relu: bool = True,
) -> Tensor:
    """LeGrad's raw maps (Bousselham et al. 2025, Eqs. 5 to 7) of the last layer's score, whatever the layer.

    The gradients go back through all later blocks, so this is by autograd, and as slow as that.

    Args: as `avgrad.engine.legrad.legrad`.

    Returns:
        `[B, P, L, patches]`, at least float32.

    Raises:
        UnsupportedModelError: the model pools by attention: LeGrad then explains the pooler's attention, and of that
            the last layer has but one.
    """
    if view.pooler is not None:
        raise UnsupportedModelError("legrad_last needs a model that does not pool by attention, and this one does")
    # LeGrad's mean is over all tokens, prefix and patches alike, with the norm after it
    pooled = replace(
        view, pool="mean_all" if pooling == "mean" else "cls", norm_before_pool=False, head=view.layer_head
    )
    traced = trace(pooled, pixels, layers)
    maps = []
    for found in gradients(traced.output, traced.attentions, prompts):
        relevance = [(gradient.relu() if relu else gradient).mean((1, 2)) for gradient in found]
        maps.append(as_maps(view, torch.stack(relevance, dim=1)))
    return torch.stack(maps, dim=1)
