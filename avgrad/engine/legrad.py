"""LeGrad (Bousselham et al., ICCV 2025) in closed form: no autograd graph, no stored attention, no repeated image.

For one block, with the notation of `Block` (`y = x + s1 W_o concat_k(A_k V_k)`, `z = y + s2 W_2 phi(W_1 norm2(y))`) and
the layer's score `s = <normalize(head(pooled z)), prompt>` (Eq. 3), the map is
`E_j = 1/(h n) sum_k sum_i relu(ds/dA_k[i, j])` (Eqs. 5 to 7). The gradient does not reach past the block:

1. `g = ds/d(pooled z)`: one vector per prompt. With mean pooling every token receives `g / n`.
2. `m = W_2^T (s2 g / n)`: one vector per prompt, the same for every token.
3. `e_i = W_1^T (phi'(a_i) m)` back through norm2 at `y_i`, plus `g / n` along the residual.
4. `u_i = W_o^T (s1 e_i)`, cut into heads; then `ds/dA_k[i, j] = u_{k,i} . v_{k,j}` exactly.

So all prompts share one forward pass with fused attention, and a layer is explained as soon as it is computed.

Where the model pools by attention (SigLIP, CoCa), its pooler looks at every layer's output `z`, and the map is made of
the gradient of that one row of attention: `E_j = 1/h sum_k relu(ds/da_k[j])` with `ds/da_k[j] = u_k . v_{k,j}` again,
and `u = W_o^T` of the gradient behind the pooler's attention. As in the released code, the trunk's final LayerNorm is
left out on the way from `z` to the pooler and from there to the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.vit import AttentionPooler, Block, VisionTransformer, activation_slope

Pooling = Literal["mean", "cls"]

# Prompts are explained in chunks whose intermediate tensors fit in this many bytes, so that memory does not grow with
# the number of prompts. Larger chunks were not faster on a CPU, whose caches are smaller than this.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LayerRecord:
    """What one layer's explanation needs from the forward pass, for `r` rows (all tokens, or only the class token).

    Attributes:
        index: the layer's number, from 0.
        pooled: the pooled output, `[B, d]`.
        values: the heads' values, `[B, h, n, d_h]`.
        slope: the activation's derivative at the MLP's pre-activations, `[B, r, d_hidden]`.
        normalized: the input of norm2 less its mean, over its standard deviation, `[B, r, d]`.
        rstd: the reciprocal of that standard deviation, `[B, r, 1]`.
    """

    index: int
    pooled: Tensor
    values: Tensor
    slope: Tensor
    normalized: Tensor
    rstd: Tensor


@dataclass(frozen=True)
class PoolerRecord:
    """What one layer's explanation needs where an attentional pooler looks at it.

    Attributes:
        attended: the pooler's output before its MLP, `[B, d_p]`.
        values: the values of its heads, `[B, h, m, d_h]`.
    """

    attended: Tensor
    values: Tensor


Record = LayerRecord | PoolerRecord


def _record(block: Block, index: int, x: Tensor, pooling: Pooling) -> tuple[Tensor, LayerRecord]:
    """The block's output for its input `[B, n, d]`, and the record of how it came about."""
    y, values = block.attend(x)
    normed, mean, rstd = block.norm2.statistics(y)
    hidden = F.linear(normed, block.fc1_weight, block.fc1_bias)
    del normed
    z = block.transform(y, hidden)
    pooled = z.mean(1) if pooling == "mean" else z[:, 0]
    if pooling == "cls":  # the gradient enters at the class token alone: only its row is ever needed
        y, mean, rstd, hidden = y[:, :1], mean[:, :1], rstd[:, :1], hidden[:, :1]
    slope = activation_slope(block.activation, hidden)
    return z, LayerRecord(index, pooled, values, slope, (y - mean) * rstd, rstd)


@torch.no_grad()
def forward(
    view: VisionTransformer,
    pixels: Tensor,
    layers: Sequence[int],
    pooling: Pooling,
    visit: Callable[[Record], None],
) -> Tensor:
    """The forward pass, shown layer by layer.

    Args:
        view: the model.
        pixels: `[B, 3, h, w]`.
        layers: numbers of the layers to be shown.
        pooling: which rows a record keeps, as in `legrad`.
        visit: called with each record, in the order of the layers. What it does not keep is forgotten.

    Returns:
        The model's own unit-norm image embeddings `[B, D]`.
    """
    wanted = frozenset(layers)
    x = view.embed(pixels.to(view.device, view.dtype))
    for index, block in enumerate(view.blocks):
        record: Record
        if index in wanted:
            if view.pooler is None:
                x, record = _record(block, index, x, pooling)
            else:
                x = block(x)
                record = PoolerRecord(*view.pooler.attend(x))
            visit(record)
            del record
        else:
            x = block(x)
    return view.embedding(x)


def _explain_chunk(view: VisionTransformer, record: LayerRecord, prompts: Tensor, relu: bool) -> Tensor:
    block = view.blocks[record.index]
    batch, heads, tokens, head_width = record.values.shape
    rows = record.slope.shape[1]
    g = view.head.gradient(record.pooled, prompts)
    g = (g / rows)[:, :, None]  # [B, P, 1, d]: mean pooling spreads the gradient evenly, the class token keeps it whole
    m = (g if block.scale2 is None else g * block.scale2) @ block.fc2_weight
    grad = (record.slope[:, None] * m) @ block.fc1_weight  # [B, P, r, d]
    e = block.norm2.gradient(record.normalized[:, None], record.rstd[:, None], grad).add_(g)
    if block.scale1 is not None:
        e *= block.scale1
    u = (e @ block.out_weight).view(batch, -1, rows, heads, head_width).transpose(2, 3)  # [B, P, h, r, d_h]
    del grad, e
    # prompts and rows are one long matrix per head: relu(U V^T), summed over rows and heads
    gradients = u.transpose(1, 2).flatten(2, 3) @ record.values.transpose(-1, -2)  # [B, h, P * r, n]
    if relu:
        gradients.relu_()
    precision = torch.promote_types(gradients.dtype, torch.float32)
    relevance = gradients.view(batch, heads, -1, rows, tokens).sum((1, 3), dtype=precision)
    return relevance[..., view.num_prefix_tokens :] / (heads * tokens)


def _explain_pooler(
    view: VisionTransformer, pooler: AttentionPooler, record: PoolerRecord, prompts: Tensor, relu: bool
) -> Tensor:
    heads = record.values.shape[1]
    e = view.layer_head.gradient(pooler.transform(record.attended), prompts)
    if pooler.mlp is not None:
        e = pooler.mlp.gradient(record.attended, e)
    u = (e @ pooler.out_weight).unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, h, P, d_h]
    gradients = u @ record.values.transpose(-1, -2)
    if relu:
        gradients.relu_()
    relevance = gradients.sum(1, dtype=torch.promote_types(gradients.dtype, torch.float32))
    prefix = view.num_prefix_tokens - pooler.num_skipped
    return relevance[..., prefix:] / heads


@torch.no_grad()
def explain(view: VisionTransformer, record: Record, prompts: Tensor, relu: bool = True) -> Tensor:
    """One layer's maps for many prompts.

    Args:
        view: the model.
        record: what `forward` showed of the layer.
        prompts: embeddings, `[B, P, D]`.
        relu: drop negative gradients, as the paper does; without it, maps have either sign.

    Returns:
        `[B, P, patches]`, at least float32, 0 or more.
    """
    if isinstance(record, PoolerRecord):
        if view.pooler is None:
            raise ValueError("this record is of an attentional pooler, and the model has none")
        batch, heads, tokens, _ = record.values.shape
        chunk = max(1, CHUNK_BYTES // (batch * heads * tokens * record.values.element_size()))
        parts = prompts.split(chunk, dim=1)
        return torch.cat([_explain_pooler(view, view.pooler, record, part, relu) for part in parts], dim=1)
    batch, heads, tokens, _ = record.values.shape
    rows, hidden = record.slope.shape[1:]
    width = record.normalized.shape[-1]
    per_prompt = batch * rows * (hidden + 4 * width + heads * tokens) * record.values.element_size()
    chunk = max(1, CHUNK_BYTES // per_prompt)
    return torch.cat([_explain_chunk(view, record, part, relu) for part in prompts.split(chunk, dim=1)], dim=1)


@torch.no_grad()
def legrad(
    view: VisionTransformer,
    pixels: Tensor,
    prompts: Tensor,
    layers: Sequence[int],
    pooling: Pooling = "mean",
    *,
    relu: bool = True,
) -> Tensor:
    """LeGrad's raw maps, one per layer (Bousselham et al. 2025, Eqs. 3 to 7).

    Args:
        view: the model.
        pixels: `[B, 3, h, w]`.
        prompts: embeddings, `[B, P, D]`.
        layers: numbers of the layers, ascending.
        pooling: "mean" scores the mean of all tokens (the paper and its released code), "cls" the class token. Where
            the model pools by attention, that is what is scored, whatever is said here.
        relu: drop negative gradients (Eq. 5); without it, an ablation, maps have either sign.

    Returns:
        `[B, P, L, patches]`, at least float32, 0 or more. The method's map is their sum over layers.
    """
    maps: list[Tensor] = []
    forward(view, pixels, layers, pooling, lambda record: maps.append(explain(view, record, prompts, relu)))
    return torch.stack(maps, dim=2)
