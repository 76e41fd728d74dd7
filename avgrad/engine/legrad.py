"""LeGrad (Bousselham et al., ICCV 2025) in closed form: no autograd graph, no stored attention, no repeated image.

For one block (`avgrad.engine.blocks`) with output z and the layer's score `s = <normalize(head(pooled z)), prompt>`
(Eq. 3), the map is `E_j = 1/(h n) sum_k sum_i relu(ds/dA_k[i, j])` (Eqs. 5 to 7). The gradient does not reach past the
block:

1. `g = ds/d(pooled z)`: one vector per prompt. With mean pooling every token receives `g / n`.
2. The block takes it back to the outputs of its heads: `u_{k,i}`, in front of the output projection.
3. `ds/dA_k[i, j] = u_{k,i} . v_{k,j}` exactly, whatever made the attention matrix.

The pull-back is linear in g, so the `1 / n` of mean pooling is left to the end: half precision would lose it.
All prompts share one forward pass with fused attention, and a layer is explained as soon as it is computed.

Where the model pools by attention (SigLIP, CoCa), its pooler looks at every layer's output `z`, and the map is made of
the gradient of that one row of attention: `E_j = 1/h sum_k relu(ds/da_k[j])` with `ds/da_k[j] = u_k . v_{k,j}` again,
and `u = W_o^T` of the gradient behind the pooler's attention. As in the released code, the trunk's final LayerNorm is
left out on the way from `z` to the pooler and from there to the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from avgrad.engine.blocks import BlockCache
from avgrad.engine.linear import matmul
from avgrad.engine.methods import Pooling, method
from avgrad.engine.view import ViTView

# Images and prompts are taken in chunks whose intermediate tensors fit in about this many bytes, so that memory does
# not grow with their number. A CPU gains nothing from chunks larger than its caches, a GPU wants long matrices.
CHUNK_BYTES = {"cpu": 8 * 2**20, "gpu": 64 * 2**20}


@dataclass(frozen=True, eq=False)
class LayerCache:
    """What one layer's explanation needs from the forward pass.

    Attributes:
        index: the layer's number, from 0.
        pooled: the pooled output, `[B, d]`.
        block: what its block's pull-back needs.
    """

    index: int
    pooled: Tensor
    block: BlockCache


@dataclass(frozen=True, eq=False)
class PoolerCache:
    """What one layer's explanation needs where an attentional pooler looks at it.

    Attributes:
        attended: the pooler's output before its MLP, `[B, L, d_p]` for L queries.
        values: the values of its heads, `[B, h, m, d_h]`.
    """

    attended: Tensor
    values: Tensor


Cache = LayerCache | PoolerCache


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
    wanted, grid = frozenset(layers), view.grid(pixels)
    # the class token's gradient enters at the class token alone: only its row is ever needed
    rows = slice(0, 1) if pooling == "cls" else None
    x = view.embed(pixels.to(view.device, view.dtype))
    for index, block in enumerate(view.blocks):
        cache: Cache
        if index not in wanted:
            x = block(x, grid)
            continue
        if view.pooler is None:
            x, kept = block.forward(x, grid, rows, backward_dtype)
            cache = LayerCache(index, x.mean(1) if rows is None else x[:, 0].clone(), kept)
            del kept
        else:
            x = block(x, grid)
            attended, values = view.pooler.attend(x)
            cache = PoolerCache(attended, values.contiguous())
        visit(cache)
        del cache
    return view.embedding(x)


def _chunk(device: torch.device, item_bytes: int) -> int:
    """How many items of this size make a chunk, at least 1."""
    return max(1, CHUNK_BYTES["cpu" if device.type == "cpu" else "gpu"] // item_bytes)


def images_at_once(view: ViTView, pixels: Tensor) -> int:
    """How many of the images `[B, 3, h, w]` `legrad` takes at a time, 1 or more; see `CHUNK_BYTES`."""
    rows, columns = view.grid(pixels)
    block = view.blocks[0]
    hidden = (view.num_prefix_tokens + rows * columns) * block.hidden
    return view.whole_videos(_chunk(view.device, hidden * block.weight.element_size()))


def _gradients(u: Tensor, values: Tensor, relu: bool) -> Tensor:
    """`sum_k mean_i relu(u_{k,i} . v_{k,j})`, `[B, C, n]`, at least float32.

    Args:
        u: gradients of the heads' outputs, `[B, C, r, h, d_v]` for C prompts.
        values: `[B, h, n, d_v]`.
        relu: whether negative ones are dropped.
    """
    batch, heads, tokens, _ = values.shape
    rows = u.shape[2]
    # prompts and rows are one long matrix per head: relu(U V^T), summed over rows and heads
    u = u.flatten(1, 2).transpose(1, 2).flatten(0, 1)  # [B * h, C * r, d_v]
    # one float32 head after another is faster than several at once on a CPU, where torch has those from MKL alone
    alone = u.device.type == "cpu" and u.dtype == torch.float32
    step = 1 if alone else _chunk(u.device, u.shape[1] * tokens * u.element_size())
    precision, sums = torch.promote_types(u.dtype, torch.float32), []
    for u_k, v_k in zip(u.split(step), values.flatten(0, 1).split(step), strict=True):
        gradients = matmul(u_k, v_k)
        if relu:
            gradients.relu_()
        sums.append(gradients.unflatten(1, (-1, rows)).sum(2, dtype=precision))
    return torch.cat(sums).unflatten(0, (batch, heads)).sum(1) / rows


def _explain_block(view: ViTView, cache: LayerCache, prompts: Tensor, relu: bool) -> Tensor:
    """Maps `[B, P, n]` from a block's heads."""
    values, block = cache.block.values, view.blocks[cache.index]
    batch, heads, tokens, _ = values.shape
    g = view.layer_head.gradient(cache.pooled, prompts)[:, :, None]  # [B, P, 1, d]
    lead = block.lead(g)
    block = block.cast(values.dtype)
    rows = cache.block.rows
    chunk = _chunk(
        prompts.device, batch * rows * (block.hidden + 4 * block.width + heads * tokens) * values.element_size()
    )
    leads: Iterable[Tensor | None] = repeat(None) if lead is None else lead.to(values.dtype).split(chunk, dim=1)
    maps = []
    for g_c, lead_c in zip(g.split(chunk, dim=1), leads):  # noqa: B905 (a repeated None has no end)
        maps.append(_gradients(block.pull(cache.block, g_c, lead_c), values, relu))
    return torch.cat(maps, dim=1) / (heads * tokens)


def _explain_pooler(view: ViTView, cache: PoolerCache, prompts: Tensor, relu: bool) -> Tensor:
    """Maps `[B, P, m]` from the heads of an attentional pooler, whose rows are its queries."""
    pooler = view.pooler
    if pooler is None:
        raise ValueError("this cache is of an attentional pooler, and the model has none")
    batch, heads, tokens, _ = cache.values.shape
    chunk = _chunk(prompts.device, batch * heads * tokens * cache.values.element_size())
    maps = []
    for part in prompts.split(chunk, dim=1):
        g = view.layer_head.gradient(pooler.finish(cache.attended), part)
        gradients = torch.einsum("bplhd,bhmd->bphlm", pooler.pull(cache.attended, g), cache.values)
        if relu:
            gradients.relu_()
        maps.append(gradients.sum(2, dtype=torch.promote_types(gradients.dtype, torch.float32)).mean(2))
    return torch.cat(maps, dim=1) / heads


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
        skipped = 0 if view.pooler is None else view.pooler.num_skipped
        return _explain_pooler(view, cache, prompts, relu)[..., view.num_prefix_tokens - skipped :]
    return _explain_block(view, cache, prompts, relu)[..., view.num_prefix_tokens :]


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


@torch.no_grad()
def explain_once(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    layers: Sequence[int],
    pooling: Pooling = "mean",
    *,
    relu: bool = True,
    backward_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """What `legrad` returns, and the image embeddings `[B, D]` of the same forward pass; no layer's cache is kept."""
    group = images_at_once(view, pixels)
    found, embeddings = [], []
    for images, wanted in zip(pixels.split(group), prompts.split(group), strict=True):
        maps: list[Tensor] = []

        def visit(cache: Cache, maps: list[Tensor] = maps, wanted: Tensor = wanted) -> None:
            maps.append(explain(view, cache, wanted, relu))

        embeddings.append(forward(view, images, layers, pooling, visit, backward_dtype))
        found.append(torch.stack(maps, dim=2))
    return torch.cat(found), torch.cat(embeddings)


@method("legrad", corrected=True, prepare=prepare, explain=explain_all, once=explain_once)
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
    return explain_once(view, pixels, prompts, layers, pooling, relu=relu, backward_dtype=backward_dtype)[0]
