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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from avgrad.engine.linear import linear, matmul
from avgrad.engine.methods import Pooling, method
from avgrad.engine.view import AttentionPooler, Block, ViTView, activation_derivative_

# Images and prompts are taken in chunks whose intermediate tensors fit in about this many bytes, so that memory does
# not grow with their number. A CPU gains nothing from chunks larger than its caches, a GPU wants long matrices.
CHUNK_BYTES = {"cpu": 8 * 2**20, "gpu": 64 * 2**20}


@dataclass(frozen=True)
class LayerCache:
    """What one layer's explanation needs from the forward pass, for `r` rows (all tokens, or only the class token).

    Attributes:
        index: the layer's number, from 0.
        pooled: the pooled output, `[B, d]`.
        values: the heads' values, `[B, h, n, d_h]`, in the dtype of the backward part.
        derivative: the activation's derivative at the MLP's pre-activations, `[B, r, d_hidden]`, in the dtype of the
            backward part.
        normalized: the input of norm2 less its mean, over its standard deviation, `[B, r, d]`.
        rstd: the reciprocal of that standard deviation, `[B, r, 1]`.
    """

    index: int
    pooled: Tensor
    values: Tensor
    derivative: Tensor
    normalized: Tensor
    rstd: Tensor


@dataclass(frozen=True)
class PoolerCache:
    """What one layer's explanation needs where an attentional pooler looks at it.

    Attributes:
        attended: the pooler's output before its MLP, `[B, d_p]`.
        values: the values of its heads, `[B, h, m, d_h]`.
    """

    attended: Tensor
    values: Tensor


Cache = LayerCache | PoolerCache


def _with_cache(block: Block, index: int, x: Tensor, pooling: Pooling, dtype: torch.dtype) -> tuple[Tensor, LayerCache]:
    """The block's output for its input `[B, n, d]`, and the cache of how it came about."""
    y, values = block.attend(x)
    values = values.to(dtype).contiguous()  # no view, which would keep queries and keys alive
    normed, mean, rstd = block.norm2.statistics(y)
    hidden = linear(normed, block.fc1_weight, block.fc1_bias)
    del normed
    z = block.transform(y, hidden)
    pooled = z.mean(1) if pooling == "mean" else z[:, 0].clone()
    if pooling == "cls":  # the gradient enters at the class token alone: only its row is ever needed
        y, mean, rstd, hidden = y[:, :1], mean[:, :1], rstd[:, :1].clone(), hidden[:, :1].clone()
    derivative = activation_derivative_(block.activation, hidden).to(dtype)
    return z, LayerCache(index, pooled, values, derivative, (y - mean).mul_(rstd), rstd)


@torch.no_grad()
def forward(
    view: ViTView,
    pixels: Tensor,
    layers: Sequence[int],
    pooling: Pooling,
    visit: Callable[[Cache], None],
    backward_dtype: torch.dtype | None = None,
) -> Tensor:
    """The forward pass, shown layer by layer.

    Args:
        view: the model.
        pixels: `[B, 3, h, w]`.
        layers: numbers of the layers to be shown.
        pooling: which rows a cache keeps, as in `legrad`.
        visit: called with each cache, in the order of the layers. What it does not keep is forgotten.
        backward_dtype: as in `legrad`.

    Returns:
        The model's own unit-norm image embeddings `[B, D]`.
    """
    wanted = frozenset(layers)
    x = view.embed(pixels.to(view.device, view.dtype))
    for index, block in enumerate(view.blocks):
        cache: Cache
        if index in wanted:
            if view.pooler is None:
                x, cache = _with_cache(block, index, x, pooling, backward_dtype or view.dtype)
            else:
                x = block(x)
                cache = PoolerCache(*view.pooler.attend(x))
            visit(cache)
            del cache
        else:
            x = block(x)
    return view.embedding(x)


def _chunk(device: torch.device, item_bytes: int) -> int:
    """How many items of this size make a chunk, at least 1."""
    return max(1, CHUNK_BYTES["cpu" if device.type == "cpu" else "gpu"] // item_bytes)


def images_at_once(view: ViTView, pixels: Tensor) -> int:
    """How many of the images `[B, 3, h, w]` `legrad` takes at a time, 1 or more; see `CHUNK_BYTES`."""
    rows, columns = view.grid(pixels)
    weight = view.blocks[0].fc1_weight
    hidden = (view.num_prefix_tokens + rows * columns) * weight.shape[0]
    return _chunk(view.device, hidden * weight.element_size())


def _explain_chunk(block: Block, cache: LayerCache, g: Tensor, m: Tensor, relu: bool) -> Tensor:
    """Maps `[B, C, n]` of C prompts, not yet averaged, from `g` `[B, C, 1, d]` and `m` `[B, C, 1, d_hidden]`."""
    batch, heads, tokens, head_width = cache.values.shape
    rows, dtype = cache.derivative.shape[1], cache.derivative.dtype
    grad = linear(cache.derivative[:, None] * m, block.fc1_weight.T)  # [B, C, r, d]
    e = block.norm2.gradient(cache.normalized[:, None], cache.rstd[:, None], grad.to(g.dtype)).add_(g)
    if block.scale1 is not None:
        e *= block.scale1
    u = linear(e.to(dtype), block.out_weight.T)
    del grad, e
    # prompts and rows are one long matrix per head: relu(U V^T), summed over rows and heads
    u = u.view(batch, -1, heads, head_width).transpose(1, 2).flatten(0, 1)  # [B * h, C * r, d_h]
    # one float32 head after another is faster than several at once on a CPU, where torch has those from MKL alone
    alone = u.device.type == "cpu" and dtype == torch.float32
    step = 1 if alone else _chunk(u.device, u.shape[1] * tokens * u.element_size())
    precision, sums = torch.promote_types(dtype, torch.float32), []
    for u_k, v_k in zip(u.split(step), cache.values.flatten(0, 1).split(step), strict=True):
        gradients = matmul(u_k, v_k)
        if relu:
            gradients.relu_()
        sums.append(gradients.unflatten(1, (-1, rows)).sum(2, dtype=precision))
    return torch.cat(sums).unflatten(0, (batch, heads)).sum(1)


def _explain_pooler(view: ViTView, pooler: AttentionPooler, cache: PoolerCache, prompts: Tensor, relu: bool) -> Tensor:
    heads = cache.values.shape[1]
    e = view.layer_head.gradient(pooler.transform(cache.attended), prompts)
    if pooler.mlp is not None:
        e = pooler.mlp.gradient(cache.attended, e)
    u = (e @ pooler.out_weight).unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, h, P, d_h]
    gradients = u @ cache.values.transpose(-1, -2)
    if relu:
        gradients.relu_()
    relevance = gradients.sum(1, dtype=torch.promote_types(gradients.dtype, torch.float32))
    prefix = view.num_prefix_tokens - pooler.num_skipped
    return relevance[..., prefix:] / heads


@torch.no_grad()
def explain(view: ViTView, cache: Cache, prompts: Tensor, relu: bool = True) -> Tensor:
    """One layer's maps for many prompts.

    Args:
        view: the model.
        cache: what `forward` showed of the layer.
        prompts: embeddings, `[B, P, D]`.
        relu: drop negative gradients, as the paper does; without it, maps have either sign.

    Returns:
        `[B, P, patches]`, at least float32, 0 or more.
    """
    if isinstance(cache, PoolerCache):
        if view.pooler is None:
            raise ValueError("this cache is of an attentional pooler, and the model has none")
        batch, heads, tokens, _ = cache.values.shape
        chunk = _chunk(prompts.device, batch * heads * tokens * cache.values.element_size())
        parts = prompts.split(chunk, dim=1)
        return torch.cat([_explain_pooler(view, view.pooler, cache, part, relu) for part in parts], dim=1)
    block = view.blocks[cache.index]
    batch, heads, tokens, _ = cache.values.shape
    rows, hidden = cache.derivative.shape[1:]
    width = cache.normalized.shape[-1]
    # mean pooling spreads the gradient evenly over the tokens, the class token keeps it whole
    g = view.head.gradient(cache.pooled, prompts) / rows
    m = linear(g if block.scale2 is None else g * block.scale2, block.fc2_weight.T).to(cache.derivative.dtype)
    block = replace(block, fc1_weight=block.fc1_weight.to(m.dtype), out_weight=block.out_weight.to(m.dtype))
    chunk = _chunk(
        prompts.device, batch * rows * (hidden + 4 * width + heads * tokens) * cache.derivative.element_size()
    )
    parts = zip(g[:, :, None].split(chunk, dim=1), m[:, :, None].split(chunk, dim=1), strict=True)
    relevance = torch.cat([_explain_chunk(block, cache, *part, relu) for part in parts], dim=1)
    return relevance[..., view.num_prefix_tokens :] / (heads * tokens)


@torch.no_grad()
def prepare(
    view: ViTView,
    pixels: Tensor,
    layers: Sequence[int],
    pooling: Pooling,
    *,
    relu: bool = True,
    backward_dtype: torch.dtype | None = None,
) -> tuple[list[Cache], Tensor]:
    """The caches of `layers` and the image embeddings `[B, D]`: all that `explain_all` needs, for any prompts."""
    caches: list[Cache] = []
    return caches, forward(view, pixels, layers, pooling, caches.append, backward_dtype)


@torch.no_grad()
def explain_all(
    view: ViTView,
    caches: Sequence[Cache],
    prompts: Tensor,
    *,
    relu: bool = True,
    backward_dtype: torch.dtype | None = None,
) -> Tensor:
    """What `legrad` returns, `[B, P, L, patches]`, from the caches that `prepare` gave."""
    return torch.stack([explain(view, cache, prompts, relu) for cache in caches], dim=2)


@method("legrad", corrected=True, prepare=prepare, explain=explain_all)
@torch.no_grad()
def legrad(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    layers: Sequence[int],
    pooling: Pooling = "mean",
    *,
    relu: bool = True,
    backward_dtype: torch.dtype | None = None,
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
        backward_dtype: torch.bfloat16 takes the matmul behind the forward pass in it, which is faster on
            processors with instructions for it and moves a heatmap by less than 0.01; None stays with the model's own.
            Ignored when the model pools by attention.

    Returns:
        `[B, P, L, patches]`, at least float32, 0 or more. The method's map is their sum over layers.
    """
    group = images_at_once(view, pixels)
    if len(pixels) > group:
        parts = zip(pixels.split(group), prompts.split(group), strict=True)
        options: dict[str, Any] = {"relu": relu, "backward_dtype": backward_dtype}
        return torch.cat([legrad(view, *part, layers, pooling, **options) for part in parts])
    maps: list[Tensor] = []
    forward(
        view, pixels, layers, pooling, lambda cache: maps.append(explain(view, cache, prompts, relu)), backward_dtype
    )
    return torch.stack(maps, dim=2)
