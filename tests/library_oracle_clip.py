"""LeGrad by autograd through the modules of open_clip and transformers themselves: an oracle that shares no code with
avgrad.

Attention is exposed where both libraries compute it: in `scaled_dot_product_attention` and in the softmax of
`nn.MultiheadAttention`. Everything else (norms, projections, MLPs, rotary positions, poolers) is the library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]  # a pooled token [B, d], or a layer's tokens [B, n, d], to an embedding [B, D]


@contextmanager
def attention_matrices() -> Iterator[list[Tensor]]:
    """The attention matrices `[..., n, m]` that are computed meanwhile, in their order, each part of the graph."""
    found: list[Tensor] = []
    softmax = F.softmax

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any) -> Tensor:
        logits = q @ k.mT * (options.get("scale") or q.shape[-1] ** -0.5)
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        found.append(torch.softmax(logits, dim=-1))
        return found[-1] @ v

    def exposed_softmax(*args: Any, **options: Any) -> Tensor:
        found.append(softmax(*args, **options))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        patch.setattr(F, "softmax", exposed_softmax)
        yield found


def layer_outputs(run: Callable[[], Any], blocks: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Each block's output `[B, n, d]` and attention matrix `[B, h, n, n]`, of one forward pass of the model."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        with attention_matrices() as matrices, torch.enable_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, matrices[: len(blocks)]


def legrad(
    run: Callable[[], Any],
    blocks: Sequence[nn.Module],
    head: Score,
    prompts: Tensor,
    *,
    num_prefix_tokens: int = 1,
    pooling: str = "mean",
    cosine: bool = True,
) -> Tensor:
    """LeGrad's maps `[B, P, L, patches]` before they are summed over layers (Bousselham et al. 2025, Eqs. 3 to 7).

    Args:
        run: one forward pass of the library's model.
        blocks: its transformer blocks, in order.
        head: the library's own layers from a pooled token `[B, d]` to the embedding `[B, D]`.
        prompts: `[P, D]`.
        num_prefix_tokens: tokens in front of the patches.
        pooling: "mean" of all tokens, or "cls".
        cosine: whether the embedding is normalized.
    """
    outputs, matrices = layer_outputs(run, blocks)
    maps = []
    for output, matrix in zip(outputs, matrices, strict=True):
        with torch.enable_grad():
            embedding = head(output.mean(1) if pooling == "mean" else output[:, 0])
            scores = (F.normalize(embedding, dim=-1) if cosine else embedding) @ prompts.T
        gradients = [torch.autograd.grad(score.sum(), matrix, retain_graph=True)[0].relu() for score in scores.T]
        maps.append(torch.stack([gradient.mean((1, 2)) for gradient in gradients], 1)[..., num_prefix_tokens:])
    return torch.stack(maps, 2)


def legrad_pooled(
    run: Callable[[], Any],
    blocks: Sequence[nn.Module],
    head: Score,
    prompts: Tensor,
    *,
    num_prefix_tokens: int = 0,
    cosine: bool = True,
) -> Tensor:
    """The same where an attention pooler looks at every layer's tokens: the gradient of its own attention's first row.

    Args:
        head: the library's pooler and what follows it, from a layer's tokens `[B, n, d]` to the embedding `[B, D]`.
        num_prefix_tokens: tokens in front of the patches that the pooler sees.
    """
    outputs, _ = layer_outputs(run, blocks)
    maps = []
    for output in outputs:
        with attention_matrices() as matrices, torch.enable_grad():
            embedding = head(output.detach())
        matrix, batch = matrices[0], len(output)
        scores = (F.normalize(embedding, dim=-1) if cosine else embedding) @ prompts.T
        gradients = [torch.autograd.grad(score.sum(), matrix, retain_graph=True)[0].relu() for score in scores.T]
        rows = [gradient.view(batch, -1, *gradient.shape[-2:])[:, :, 0].mean(1) for gradient in gradients]
        maps.append(torch.stack(rows, 1)[..., num_prefix_tokens:])
    return torch.stack(maps, 2)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model in float64 and eval mode whose weights are all random: biases and norms start as 0 and 1, which would
    hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.05)
    return model
