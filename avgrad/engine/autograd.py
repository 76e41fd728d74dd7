"""LeGrad by autograd: the definition, written down as it stands. Slow and memory-hungry: the oracle of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avgrad.engine.methods import Pooling, method
from avgrad.engine.trace import with_graph
from avgrad.engine.view import ViTView


@method("legrad_autograd", corrected=True)
@torch.no_grad()
@with_graph
def legrad_autograd(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """The same as `avgrad.engine.legrad.legrad`, with the gradient of each attention matrix taken by autograd."""
    wanted, maps, grid = frozenset(layers), [], view.grid(pixels)
    x = view.embed(pixels.to(view.device, view.dtype))
    for index, block in enumerate(view.blocks):
        if index not in wanted:
            x = block(x, grid)
            continue
        if view.pooler is None:
            attention, values = block.attention(x, grid)
            with torch.enable_grad():
                attention = attention.detach().requires_grad_()
                z = block.run(x, attention, values)
                scores = view.layer_head.scores(z.mean(1) if pooling == "mean" else z[:, 0], prompts)
                maps.append(_relevance(scores, attention)[..., view.num_prefix_tokens :])
            x = z.detach()
        else:  # the pooler looks at every layer's output
            x = block(x, grid)
            attention, values = view.pooler.matrix(x)  # [B, h, L, m]
            with torch.enable_grad():
                attention = attention.detach().requires_grad_()
                scores = view.layer_head.scores(view.pooler.finish(view.pooler.mix(attention @ values)), prompts)
                relevance = _relevance(scores, attention)
            maps.append(relevance[..., view.num_prefix_tokens - view.pooler.num_skipped :])
    return torch.stack(maps, dim=2).to(torch.promote_types(view.dtype, torch.float32))


def _relevance(scores: Tensor, attention: Tensor) -> Tensor:
    """`mean_k mean_i relu(ds/dA_k)`, `[B, P, n]`, of scores `[B, P]` and attention `[B, h, r, n]`."""
    found = []
    for score in scores.unbind(1):
        (gradient,) = torch.autograd.grad(score.sum(), attention, retain_graph=True)
        found.append(gradient.relu().mean((1, 2)))
    return torch.stack(found, dim=1)
