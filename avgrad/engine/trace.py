"""A forward pass that keeps its graph, for the methods whose gradients go through several layers.

LeGrad itself needs none of this: its gradients end where a block begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.view import AttentionPooler, Block, ViTView

# Images are taken in groups whose graphs fit in about this many bytes, so that memory does not grow with the batch.
GRAPH_BYTES = 2**30

Method = TypeVar("Method", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class Trace:
    """What a forward pass left, with its graph.

    Attributes:
        inputs: what went into each traced block, `[B, n, d]` each.
        attentions: the attention matrices of those blocks, `[B, h, n, n]` each.
        pooler_attention: that of the attentional pooler, `[B, h, 1, m]`, or None.
        output: what the score is of, `[B, D]`: the embedding, unit-norm where the model's score is a cosine.
    """

    inputs: list[Tensor]
    attentions: list[Tensor]
    pooler_attention: Tensor | None
    output: Tensor


def attention_of(module: Block | AttentionPooler, x: Tensor) -> tuple[Tensor, Tensor]:
    """The attention matrices `[B, h, r, n]` and values `[B, h, n, d_h]` of a block or a pooler for its input."""
    q, k, v = module.heads(x)
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1), v


def run_blocks(view: ViTView, pixels: Tensor, stop: int) -> Tensor:
    """What goes into block `stop`, `[B, n, d]`, without a graph."""
    with torch.no_grad():
        x = view.embed(pixels.to(view.device, view.dtype))
        for block in view.blocks[:stop]:
            x = block(x)
    return x.detach()


def scored(view: ViTView, output: Tensor) -> Tensor:
    """The output `[B, D]` as the model's score takes it: unit-norm where the score is a cosine."""
    return F.normalize(output, dim=-1) if view.head.cosine else output


def pooler_input(view: ViTView, tokens: Tensor) -> Tensor:
    """What the model's own attentional pooler sees of the last block's output `[B, n, d]`."""
    return view.head.norm(tokens) if view.norm_before_pool and view.head.norm is not None else tokens


def trace(view: ViTView, pixels: Tensor, layers: Sequence[int]) -> Trace:
    """The forward pass, with the attention of each of `layers` written out and a graph from the first of them on.

    Args:
        view: the model.
        pixels: `[B, 3, h, w]`.
        layers: numbers of the traced layers, ascending.
    """
    wanted, first = frozenset(layers), min(layers)
    x = run_blocks(view, pixels, first)
    inputs, attentions, pooler_attention = [], [], None
    with torch.enable_grad():
        x.requires_grad_()
        for index, block in enumerate(view.blocks[first:], start=first):
            if index in wanted:
                attention, values = attention_of(block, x)
                inputs.append(x)
                attentions.append(attention)
                y = block.mix(x, attention @ values)
                x = block.transform(y, F.linear(block.norm2(y), block.fc1_weight, block.fc1_bias))
            else:
                x = block(x)
        if view.pooler is None:
            output = view.output(x)
        else:
            pooler_attention, values = attention_of(view.pooler, pooler_input(view, x))
            pooled = view.pooler.transform(view.pooler.mix(pooler_attention @ values)[:, 0])
            output = view.head.project(pooled) if view.norm_before_pool else view.head(pooled)
        return Trace(inputs, attentions, pooler_attention, scored(view, output))


def gradients(output: Tensor, inputs: Sequence[Tensor], prompts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The gradients of each prompt's score `<output, prompt>` with respect to each of `inputs`, prompt after prompt.

    The prompts share the forward pass: a prompt is what the output's gradient is.

    Args:
        output: `[B, D]`, with a graph.
        inputs: tensors of that graph.
        prompts: `[B, P, D]`.
    """
    for prompt in prompts.unbind(1):
        yield torch.autograd.grad(output, inputs, prompt, retain_graph=True)


def pooled_row(view: ViTView, matrix: Tensor) -> Tensor:
    """The row that the model pools of a matrix `[..., n, n]`: the class token's, or the mean of the patches'."""
    return matrix[..., 0, :] if view.pool == "cls" else matrix[..., view.num_prefix_tokens :, :].mean(-2)


def first_row(view: ViTView, tokens: int, pooler_row: Tensor | None = None) -> Tensor:
    """How the output depends on the last block's n tokens, `[..., n]`: where a walk back through the layers begins.

    It is 1 at the class token, 1 over their number at the patches, or the row `[..., m]` of the attentional pooler.
    """
    if pooler_row is not None:
        return F.pad(pooler_row, (tokens - pooler_row.shape[-1], 0))
    row = torch.zeros(tokens, dtype=view.dtype, device=view.device)
    if view.pool == "cls":
        row[0] = 1
    else:
        row[view.num_prefix_tokens :] = 1 / (tokens - view.num_prefix_tokens)
    return row


def as_maps(view: ViTView, row: Tensor) -> Tensor:
    """The patches of a row `[..., n]`, at least float32."""
    return row[..., view.num_prefix_tokens :].to(torch.promote_types(view.dtype, torch.float32))


def in_chunks(method: Method) -> Method:
    """Lets a method see the batch in groups of images whose graphs fit in `GRAPH_BYTES`."""

    @wraps(method)
    def chunked(view: ViTView, pixels: Tensor, prompts: Tensor, *rest: Any, **options: Any) -> Tensor:
        rows, columns = view.grid(pixels)
        tokens, block = rows * columns + view.num_prefix_tokens, view.blocks[0]
        # a block keeps about two attention matrices per head and twenty vectors of its width per token
        per_layer = tokens * (2 * block.num_heads * tokens + 20 * block.out_weight.shape[0])
        chunk = max(1, GRAPH_BYTES // (len(view.blocks) * per_layer * block.out_weight.element_size()))
        parts = zip(pixels.split(chunk), prompts.split(chunk), strict=True)
        return torch.cat([method(view, *part, *rest, **options) for part in parts])

    return cast(Method, chunked)
