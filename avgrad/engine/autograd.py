"""LeGrad by autograd: the definition, written down as it stands. Slow and memory-hungry: the oracle of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.methods import Pooling, method
from avgrad.engine.view import AttentionPooler, ViTView


@method("legrad_autograd", corrected=True)
def legrad_autograd(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """The same as `avgrad.engine.legrad.legrad`, with the gradient of each attention matrix taken by autograd."""
    if view.pooler is not None:
        return _pooler_maps(view, view.pooler, pixels, prompts, layers)
    wanted, maps = frozenset(layers), []
    with torch.no_grad():
        x = view.embed(pixels.to(view.device, view.dtype))
    for index, block in enumerate(view.blocks):
        with torch.no_grad():
            q, k, v = block.heads(x)
            attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        with torch.enable_grad():
            attention.requires_grad_(index in wanted)
            y = block.mix(x, attention @ v)
            z = block.transform(y, F.linear(block.norm2(y), block.fc1_weight, block.fc1_bias))
            if index in wanted:
                pooled = z.mean(1) if pooling == "mean" else z[:, 0]
                scores = view.head.scores(pooled, prompts)
                layer = []
                for p in range(prompts.shape[1]):
                    (gradient,) = torch.autograd.grad(scores[:, p].sum(), attention, retain_graph=True)
                    layer.append(gradient.relu().mean((1, 2))[:, view.num_prefix_tokens :])
                maps.append(torch.stack(layer, dim=1))
        x = z.detach()
    return torch.stack(maps, dim=2)


def _pooler_maps(
    view: ViTView, pooler: AttentionPooler, pixels: Tensor, prompts: Tensor, layers: Sequence[int]
) -> Tensor:
    """The same where the model pools by attention: the pooler looks at every layer's output."""
    wanted, maps = frozenset(layers), []
    with torch.no_grad():
        x = view.embed(pixels.to(view.device, view.dtype))
    for index, block in enumerate(view.blocks):
        with torch.no_grad():
            x = block(x)
            if index not in wanted:
                continue
            q, k, v = pooler.heads(x)
            attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)  # [B, h, 1, m]
        with torch.enable_grad():
            attention.requires_grad_()
            pooled = pooler.transform(pooler.mix(attention @ v)[:, 0])
            scores = view.layer_head.scores(pooled, prompts)
            layer = []
            for p in range(prompts.shape[1]):
                (gradient,) = torch.autograd.grad(scores[:, p].sum(), attention, retain_graph=True)
                layer.append(gradient.relu().mean((1, 2))[:, view.num_prefix_tokens - pooler.num_skipped :])
        maps.append(torch.stack(layer, dim=1))
    return torch.stack(maps, dim=2)
