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

from avgrad.engine.view import ViTView

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


def run_blocks(view: ViTView, pixels: Tensor, stop: int) -> Tensor:
    """What goes into block `stop`, `[B, n, d]`, without a graph."""
    with torch.no_grad():
        return view.tokens(pixels, stop).detach()


def trace(view: ViTView, pixels: Tensor, layers: Sequence[int]) -> Trace:
    """The forward pass, with the attention of each of `layers` written out and a graph from the first of them on.

    Args:
        view: the model.
        pixels: `[B, 3, h, w]`.
        layers: numbers of the traced layers, ascending.
    """
    wanted, first, grid = frozenset(layers), min(layers), view.grid(pixels)
    x = run_blocks(view, pixels, first)
    inputs, attentions, pooler_attention = [], [], None
    with torch.enable_grad():
        x.requires_grad_()
        for index, block in enumerate(view.blocks[first:], start=first):
            if index in wanted:
                attention, values = block.attention(x, grid)
                inputs.append(x)
                attentions.append(attention)
                x = block.run(x, attention, values)
            else:
                x = block(x, grid)
        if view.pooler is None:
            output = view.output(x)
        else:
            pooler_attention, values = view.pooler.matrix(view.pooler_input(x))
            output = view.after_pooler(view.pooler.finish(view.pooler.mix(pooler_attention @ values)))
        return Trace(inputs, attentions, pooler_attention, view.scored(output))


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
    """The row `[..., n]` that the model pools of a matrix `[..., n, n]`: the class token's, or the mean of those of the
    patches; where it pools several tokens, the mean of their rows."""
    return torch.stack(view.pooled_rows(matrix.shape[-1])).mean(0).to(matrix.dtype) @ matrix


def first_row(view: ViTView, tokens: int, pooler_row: Tensor | None = None) -> Tensor:
    """How the output depends on the last block's n tokens, `[..., n]`: where a walk back through the layers begins.

    It is what the model pools by (`ViTView.pooled_rows`, their mean), or the row `[..., m]` of the attentional pooler.
    """
    if pooler_row is not None:
        return F.pad(pooler_row, (tokens - pooler_row.shape[-1], 0))
    return torch.stack(view.pooled_rows(tokens)).mean(0)


def as_maps(view: ViTView, row: Tensor) -> Tensor:
    """The patches of a row `[..., n]`, at least float32."""
    return row[..., view.num_prefix_tokens :].to(torch.promote_types(view.dtype, torch.float32))


def with_graph(method: Method) -> Method:
    """Lets a method build graphs although its caller is in `torch.inference_mode`.

    Tensors made there cannot take part in a graph, so it sees copies of them.
    """

    @wraps(method)
    def graphed(view: ViTView, pixels: Tensor, prompts: Tensor, *rest: Any, **options: Any) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            pixels, prompts = (t.clone() if t.is_inference() else t for t in (pixels, prompts))
            return method(view, pixels, prompts, *rest, **options)

    return cast(Method, graphed)


def in_chunks(method: Method) -> Method:
    """Lets a method build graphs (`with_graph`), of groups of images whose graphs fit in `GRAPH_BYTES`."""

    @wraps(method)
    @with_graph
    def chunked(view: ViTView, pixels: Tensor, prompts: Tensor, *rest: Any, **options: Any) -> Tensor:
        rows, columns = view.grid(pixels)
        tokens, block = rows * columns + view.num_prefix_tokens, view.blocks[0]
        # a block keeps about two attention matrices per head and twenty vectors of its width per token
        per_layer = tokens * (2 * block.num_heads * tokens + 20 * block.width)
        chunk = view.whole_videos(GRAPH_BYTES // (len(view.blocks) * per_layer * block.weight.element_size()))
        parts = zip(pixels.split(chunk), prompts.split(chunk), strict=True)
        return torch.cat([method(view, *part, *rest, **options) for part in parts])

    return cast(Method, chunked)
