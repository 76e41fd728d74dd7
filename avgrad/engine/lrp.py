"""Relevance propagation through a vision transformer, and three methods that read it (Chefer et al. 2020).

The rules of "Transformer Interpretability Beyond Attention Visualization", for relevance R of an operation's output:

- linear (Eq. 4, bias left out): R goes to the inputs in proportion to their positive contributions `x_j w_ji`.
- LayerNorm, GELU, softmax, LayerScale: R passes as it is.
- matrix product and sum of two tensors (Eq. 7): R goes to each input u as `u * (du of the output)^T (R / output)`; a
  product gives a half of that to each.

There are two sets of them. The *published baselines* "LRP" and "partial LRP" (the authors' `layers_lrp`) divide by the
contributions of positive and of negative inputs separately, so that a linear layer gives away twice what it gets, and
leave the shares of a residual sum as they come, which may be huge and cancel. The *conserving* rules, those of the
paper and of its own method, divide by both together and bring the shares of a sum to their parts of the total (Eqs. 8
to 10), `|sum R_u| / (|sum R_u| + |sum R_v|)`; so the total is conserved from the score to the first block's input (but
for a channel that no input makes larger: it has nowhere to pass its relevance).

Our reading: the score is one linear layer, whose weight is the prompt taken back through the projection (as in a
zero-shot classifier), with relevance 1; that the embedding is brought to unit length changes nothing then. Where a
token is pooled by the mean, that is a sum. All of it is computed in float64, whatever the model's dtype: it divides by
sums that nearly cancel, which leaves noise of float32. (In half precision the tokens in front of the first block are
rounded, which "LRP" magnifies; explain such models in float32.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.attention import Grid
from avgrad.engine.blocks import PreNorm, plain_block, scaled
from avgrad.engine.chefercam import relevant
from avgrad.engine.heads import Tail
from avgrad.engine.methods import Pooling, last_layer, method
from avgrad.engine.mlp import activate
from avgrad.engine.parts import Linear
from avgrad.engine.trace import as_maps, first_row, gradients, in_chunks, pooled_row, trace
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError

# Prompts are propagated in groups whose attention relevance, over all layers, fits in this many bytes.
RELEVANCE_BYTES = 2**28

Visit = Callable[[int, Tensor], None]


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, and 0 where b is 0."""
    return torch.where(b == 0, 0, a / b)


def _wide(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _linear(relevance: Tensor, x: Tensor, weight: Tensor, conserving: bool) -> Tensor:
    """Relevance of a linear layer's input `[B, ..., d_in]` from its output's, `[B, P, ..., d_out]`."""
    up, down = weight.clamp_min(0), weight.clamp_max(0)
    plus, minus = x.clamp_min(0), x.clamp_max(0)
    one, two = F.linear(plus, up)[:, None], F.linear(minus, down)[:, None]
    if conserving:
        one = two = one + two
    return plus[:, None] * (_divide(relevance, one) @ up) + minus[:, None] * (_divide(relevance, two) @ down)


def _sum(relevance: Tensor, a: Tensor, b: Tensor, conserving: bool) -> tuple[Tensor, Tensor]:
    """Relevance of the two addends `[B, n, d]` from their sum's, `[B, P, n, d]`."""
    share = _divide(relevance, (a + b)[:, None])
    of_a, of_b = a[:, None] * share, b[:, None] * share
    if not conserving:
        return of_a, of_b
    total, sum_a, sum_b = (t.sum((-2, -1), keepdim=True) for t in (relevance, of_a, of_b))
    parts = sum_a.abs() + sum_b.abs()
    return of_a * _divide(sum_a.sign() * total, parts), of_b * _divide(sum_b.sign() * total, parts)


def _product(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of a `[B, h, n, k]` and b `[B, h, m, k]` from that of `a b^T`, `[B, P, h, n, m]`."""
    share = _divide(relevance, (a @ b.transpose(-1, -2))[:, None]) / 2
    return a[:, None] * (share @ b[:, None]), b[:, None] * (share.transpose(-1, -2) @ a[:, None])


def _through_block(
    block: PreNorm, x: Tensor, grid: Grid, relevance: Tensor, stop: bool, conserving: bool
) -> tuple[Tensor, Tensor]:
    """Relevance of the block's attention `[B, P, h, n, n]` and of its input, from its output's `[B, P, n, d]`.

    With `stop` the first is all that is wanted, and the second is whatever came by.
    """
    attention, values = block.attention(x, grid)
    context = attention @ values
    added = block.mix(x, context)
    y = x + added
    normed, mlp = block.norm2(y), block.mlp
    hidden = activate(mlp.act, mlp.fc1(normed))
    residual, changed = _sum(relevance, y, scaled(block.scale2, mlp.finish(hidden)), conserving)
    changed = _linear(changed, hidden, mlp.fc2.weight, conserving)
    relevance = residual + _linear(changed, normed, mlp.fc1.weight, conserving)
    residual, attended = _sum(relevance, x, added, conserving)
    attended = _linear(attended, context.transpose(1, 2).flatten(2), block.attn.out.weight, conserving)
    heads = attended.unflatten(-1, (block.num_heads, -1)).transpose(2, 3)
    of_attention, of_values = _product(heads, attention, values.transpose(-1, -2))
    of_values = of_values.transpose(-1, -2)
    if stop:
        return of_attention, residual
    q, k, _ = block.heads(x, grid)
    of_queries, of_keys = _product(of_attention, q, k)
    parts = torch.stack([of_queries, of_keys, of_values], dim=2)  # [B, P, 3, h, n, d_h]
    parts = parts.permute(0, 1, 4, 2, 3, 5).flatten(3)
    return of_attention, residual + _linear(parts, block.norm1(x), block.attn.qkv_weight, conserving)


def _of_score(view: ViTView, tokens: Tensor, prompts: Tensor, conserving: bool) -> Tensor:
    """Relevance of the last block's output `[B, P, n, d]`, 1 in all (or 2, where the rules do not conserve)."""
    head, start = view.head.cast(tokens.dtype), view.num_prefix_tokens
    pooled = tokens[:, :1] if view.pool == "cls" else tokens[:, start:]
    if view.norm_before_pool and head.norm is not None:
        pooled = head.norm(pooled)
    mean = pooled.mean(1)
    scored = mean if view.norm_before_pool or head.norm is None else head.norm(mean)
    weight = head.projection.pull(prompts) if isinstance(head.projection, Linear) else prompts  # [B, P, d]
    alone = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)[None]  # each prompt's own relevance
    pairs = zip(scored[:, None], weight, strict=True)
    relevance = torch.cat([_linear(alone, x, w, conserving) for x, w in pairs])  # [B, P, d]
    relevance = pooled[:, None] * _divide(relevance, mean[:, None])[:, :, None] / pooled.shape[1]
    before = 0 if view.pool == "cls" else start
    return F.pad(relevance, (0, 0, before, tokens.shape[1] - before - pooled.shape[1]))


def propagate(
    view: ViTView,
    inputs: Sequence[Tensor],
    grid: Grid,
    prompts: Tensor,
    visit: Visit,
    stop: int = -1,
    conserving: bool = True,
) -> Tensor:
    """Propagates each prompt's relevance from the score back through the blocks.

    Args:
        view: the model.
        inputs: what goes into each block, and what comes out of the last, `[B, n, d]` each, in float64.
        grid: rows and columns of patches.
        prompts: `[B, P, D]`.
        visit: called with each layer's number and the relevance of its attention, `[B, P, h, n, n]`, from the last
            layer on.
        stop: the layer whose attention is the last one wanted; -1 for going through to the first block's input.
        conserving: by the conserving rules, or those of the published baselines.

    Returns:
        Relevance of the first block's input, `[B, P, n, d]`; with `stop` 0 or more, undefined values.

    Raises:
        UnsupportedModelError: the model pools by attention, or has blocks for which the paper has no rules.
    """
    if view.pooler is not None:
        raise UnsupportedModelError("relevance propagation needs a model that does not pool by attention")
    if view.pool not in ("cls", "mean") or isinstance(view.head.projection, Tail):
        raise UnsupportedModelError("relevance propagation needs a model whose embedding is linear in one pooled token")
    relevance = _of_score(view, inputs[-1], prompts.to(inputs[-1].dtype), conserving)
    for index in range(len(view.blocks) - 1, max(stop, 0) - 1, -1):
        block = plain_block(view.blocks[index], "relevance propagation").cast(relevance.dtype)
        attention, relevance = _through_block(block, inputs[index], grid, relevance, index == stop, conserving)
        visit(index, attention)
    return relevance


def _inputs(view: ViTView, pixels: Tensor) -> list[Tensor]:
    """What goes into each block, and what comes out of the last, in float64."""
    inputs, grid = [view.embed(pixels.to(view.device, view.dtype)).to(_wide(view.device))], view.grid(pixels)
    for block in view.blocks:
        inputs.append(block.cast(inputs[0].dtype)(inputs[-1], grid))
    return inputs


def _groups(view: ViTView, inputs: Sequence[Tensor], prompts: Tensor) -> tuple[Tensor, ...]:
    """The prompts in groups, along their dimension."""
    batch, tokens, _ = inputs[0].shape
    per_prompt = len(view.blocks) * batch * view.blocks[0].num_heads * tokens**2 * inputs[0].element_size()
    return prompts.split(max(1, RELEVANCE_BYTES // per_prompt), dim=1)


def every_layer(view: ViTView, layers: Sequence[int], options: Mapping[str, Any]) -> list[int]:
    """Relevance goes through all layers, whatever is asked for."""
    return list(range(len(view.blocks)))


def _of_input(view: ViTView, pixels: Tensor, prompts: Tensor, conserving: bool) -> Tensor:
    """The relevance that reaches each patch, `[B, P, 1, patches]`."""
    inputs, grid, maps = _inputs(view, pixels), view.grid(pixels), []
    for part in _groups(view, inputs, prompts):
        maps.append(propagate(view, inputs, grid, part, lambda *_: None, conserving=conserving).sum(-1))
    return as_maps(view, torch.cat(maps, dim=1))[:, :, None]


def _of_attention(view: ViTView, pixels: Tensor, prompts: Tensor, last: int, conserving: bool) -> Tensor:
    """The relevance of a layer's attention, its pooled row, `[B, P, 1, patches]`."""
    inputs, grid, maps = _inputs(view, pixels), view.grid(pixels), []
    for part in _groups(view, inputs, prompts):
        found: dict[int, Tensor] = {}
        propagate(view, inputs, grid, part, found.__setitem__, stop=last, conserving=conserving)
        maps.append(as_maps(view, pooled_row(view, found[last].relu().mean(2))))
    return torch.cat(maps, dim=1)[:, :, None]


@method("lrp", explains=every_layer)
@torch.no_grad()
@in_chunks
def lrp(view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean") -> Tensor:
    """The relevance that reaches each patch, the published baseline "LRP" of Chefer et al. 2020 (rules of the module).

    Our reading: it is read at the first block's input, summed over channels. The original goes on to the pixels, which
    shares a patch's relevance out within the patch, less what the position embedding takes.

    Args: as `avgrad.engine.legrad.legrad`; `layers` and `pooling` are ignored.

    Returns:
        `[B, P, 1, patches]`, at least float32, of either sign.

    Raises:
        UnsupportedModelError: the model pools by attention, or has blocks for which there are no rules.
    """
    return _of_input(view, pixels, prompts, conserving=False)


@method("lrp_conserving", explains=every_layer)
@torch.no_grad()
@in_chunks
def lrp_conserving(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """The relevance that reaches each patch by the conserving rules: what a layer gets, it gives away.

    Read at the first block's input, summed over channels; not a published baseline.

    Args: as `avgrad.engine.legrad.legrad`; `layers` and `pooling` are ignored.

    Returns:
        `[B, P, 1, patches]`, at least float32, of either sign.

    Raises:
        UnsupportedModelError: the model pools by attention, or has blocks for which there are no rules.
    """
    return _of_input(view, pixels, prompts, conserving=True)


@method("partial_lrp", explains=last_layer)
@torch.no_grad()
@in_chunks
def partial_lrp(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """The relevance of a layer's attention, `E_j = mean_k(relu(R_k))_j`, the published baseline "partial LRP" of Chefer
    et al. 2020 (after Voita et al. 2019), by the rules of that baseline.

    Of R the row is taken that the model pools: the class token's, or the mean of the patches'. The layer is the last
    of `layers`.

    Args: as `avgrad.engine.legrad.legrad`; `pooling` is ignored.

    Returns:
        `[B, P, 1, patches]`, at least float32, 0 or more.

    Raises:
        UnsupportedModelError: the model pools by attention, or has blocks for which there are no rules.
    """
    return _of_attention(view, pixels, prompts, max(layers), conserving=False)


@method("partial_lrp_conserving", explains=last_layer)
@torch.no_grad()
@in_chunks
def partial_lrp_conserving(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """The same as `partial_lrp` by the conserving rules; not a published baseline.

    Args: as `avgrad.engine.legrad.legrad`; `pooling` is ignored.

    Returns:
        `[B, P, 1, patches]`, at least float32, 0 or more.

    Raises:
        UnsupportedModelError: the model pools by attention, or has blocks for which there are no rules.
    """
    return _of_attention(view, pixels, prompts, max(layers), conserving=True)


@method("transformer_attribution")
@torch.no_grad()
@in_chunks
def transformer_attribution(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    layers: Sequence[int],
    pooling: Pooling = "mean",
    *,
    scale: float = 1.0,
) -> Tensor:
    """Transformer attribution (Chefer et al. 2020, Eqs. 13 and 14).

    `C = (I + M_1) (I + M_2) ... (I + M_L)`, in the order of the released code (the last layer leftmost), with
    `M_l = mean_k(relu(ds/dA_lk * R_lk))` and R the relevance of the attention, by the conserving rules. The map is the
    row of C that the model pools. Our reading: s is the model's own score.

    Args: as `avgrad.engine.legrad.legrad`; only `layers` are multiplied; `pooling` is ignored.
        scale: factor of the score. The map depends on it, since M is added to I. The authors explain logits; those of
            CLIP are cosines times 100.

    Returns:
        `[B, P, 1, patches]`, at least float32, 0 or more.

    Raises:
        UnsupportedModelError: the model pools by attention, or has blocks for which there are no rules.
    """
    inputs, grid, maps = _inputs(view, pixels), view.grid(pixels), []
    parts = _groups(view, inputs, prompts)
    traced = trace(view, pixels, layers)
    derivatives = gradients(traced.output, traced.attentions, prompts)
    for part in parts:
        relevance: dict[int, Tensor] = {}
        propagate(view, inputs, grid, part, relevance.__setitem__, stop=min(layers))
        for p in range(part.shape[1]):
            row = first_row(view, inputs[0].shape[1]).to(inputs[0].dtype).expand(len(pixels), -1)
            for index, gradient in reversed(list(zip(layers, next(derivatives), strict=True))):
                row = row + (row[:, None] @ relevant(gradient * scale, relevance[index][:, p]))[:, 0]
            maps.append(as_maps(view, row))
    return torch.stack(maps, dim=1)[:, :, None]
