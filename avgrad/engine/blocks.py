"""Kinds of transformer blocks: each knows its forward pass, and the way of a gradient back to its heads' outputs.

LeGrad needs two things of a block: the values v that its attention averages, and u, the gradient of a score with
respect to each head's output in front of the output projection. Then `ds/dA_k[i, j] = u_{k,i} . v_{k,j}`, whatever made
the attention matrix A. Another kind of block is another class with the methods of `Block`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avgrad.engine.attention import Attention, AttentionCache, Grid
from avgrad.engine.mlp import Mlp, MlpCache
from avgrad.engine.norms import Norm, NormCache
from avgrad.engine.parts import Part, Weight
from avgrad.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class BlockCache:
    """What a block's pull-back needs of its forward pass, for r tokens (all of them, or the class token alone).

    Attributes:
        values: the heads' values, `[B, h, n, d_v]`.
        rows: r.
        attention: of each attention.
        mlp: of each MLP on the gradient's way; empty where it does not pass one.
        norms: of the norms on its way, by name.
    """

    values: Tensor
    rows: int
    attention: tuple[AttentionCache, ...]
    mlp: tuple[MlpCache, ...] = ()
    norms: dict[str, NormCache] | None = None

    def norm(self, name: str) -> NormCache:
        assert self.norms is not None
        return self.norms[name]


class Block(Part, ABC):
    """A transformer block. `x` is its input `[B, n, d]`, `grid` the rows and columns of patches."""

    @property
    @abstractmethod
    def attentions(self) -> Sequence[Attention]:
        """Its attentions: one, or several in parallel."""

    @property
    @abstractmethod
    def hidden(self) -> int:
        """Numbers per token in the widest place of its MLPs."""

    @property
    def num_heads(self) -> int:
        """Heads of all its attentions together."""
        return sum(attention.num_heads for attention in self.attentions)

    @property
    def width(self) -> int:
        """Size d of its tokens."""
        return self.attentions[0].out.out_features

    @property
    def weight(self) -> Tensor:
        """One of its matrices, which tells device and dtype."""
        return self.attentions[0].out.weight

    @abstractmethod
    def inputs(self, x: Tensor) -> list[Tensor]:
        """What goes into each of its attentions, `[B, n, d]` each."""

    @abstractmethod
    def run_contexts(self, x: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """The output `[B, n, d]`, given what the heads of each attention give, `[B, h, n, d_v]` each."""

    @abstractmethod
    def forward(
        self, x: Tensor, grid: Grid, rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, BlockCache]:
        """The output, and what `pull` needs.

        Args:
            x: `[B, n, d]`.
            grid: rows and columns of patches.
            rows: the tokens at whose output a gradient enters; None for all.
            dtype: of the cache's large tensors; None for that of `x`.
        """

    def lead(self, g: Tensor) -> Tensor | None:
        """The part of the pull-back that is the same for all tokens that share a gradient, `[B, P, 1, k]`; None where
        there is none. `pull` goes on from it."""
        return None

    @abstractmethod
    def pull(self, cache: BlockCache, g: Tensor, lead: Tensor | None = None) -> Tensor:
        """Gradient of the heads' outputs.

        Args:
            cache: what `forward` gave.
            g: gradient of the block's output, `[B, P, 1, d]` where all r tokens share one, or `[B, P, r, d]`.
            lead: what `lead` gave for it, or None.

        Returns:
            u `[B, P, r, h, d_v]`, or `[B, P, 1, h, d_v]` where all tokens share one; in the cache's dtype.
        """

    # ------------------------------------------------------------------ the same for all kinds

    def __call__(self, x: Tensor, grid: Grid) -> Tensor:
        """The output `[B, n, d]`."""
        pairs = zip(self.attentions, self.inputs(x), strict=True)
        return self.run_contexts(x, [attention.context(inner, grid)[0] for attention, inner in pairs])

    def heads(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every head: q and k `[B, h, n, d_h]`, v `[B, h, n, d_v]`."""
        found = [a.heads(inner, grid) for a, inner in zip(self.attentions, self.inputs(x), strict=True)]
        q, k, v = (joined(tensors) for tensors in zip(*found, strict=True))
        return q, k, v

    def attention(self, x: Tensor, grid: Grid, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """The attention matrices `[B, h, n, n]` (those rows of them) and values `[B, h, n, d_v]` of all heads."""
        found = [a.matrix(inner, grid, rows) for a, inner in zip(self.attentions, self.inputs(x), strict=True)]
        matrix, values = (joined(tensors) for tensors in zip(*found, strict=True))
        return matrix, values

    def context(self, x: Tensor, grid: Grid) -> Tensor:
        """The heads' outputs, `[B, h, n, d_v]`."""
        pairs = zip(self.attentions, self.inputs(x), strict=True)
        return joined([attention.context(inner, grid)[0] for attention, inner in pairs])

    def run(self, x: Tensor, matrix: Tensor, values: Tensor) -> Tensor:
        """The output, given the attention matrices and values of all heads, such as `attention` gives."""
        return self.run_context(x, matrix @ values)

    def run_context(self, x: Tensor, context: Tensor) -> Tensor:
        """The output, given the outputs of all heads, such as `context` gives."""
        return self.run_contexts(x, context.split([a.num_heads for a in self.attentions], dim=1))


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of several attentions, `[B, h, ...]` each, side by side along the heads."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)


def kept(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Values in memory of their own, so that queries and keys are freed."""
    return values.to(dtype or values.dtype).contiguous()


def count(x: Tensor, rows: slice | None) -> int:
    """How many of the tokens `[B, n, d]` the rows are."""
    return len(range(x.shape[1])[rows or slice(None)])


def scaled(scale: Weight | None, x: Tensor) -> Tensor:
    """A branch times its LayerScale factor."""
    return x if scale is None else x * scale().to(x.dtype)


def _of_rows(g: Tensor, cache: NormCache) -> Tensor:
    """A gradient `[B, P, 1 or r, d]` at each of r tokens, in memory of its own, in the dtype of the norm."""
    normalized = cache.normalized
    return g.to(normalized.dtype).expand(-1, -1, normalized.shape[1], -1).clone()


class Serial(Block):
    """`y = x + s1 * post1(attention(norm1(x)))`, `z = y + s2 * post2(mlp(norm2(y)))`; each norm and scale may be None.

    `PreNorm`, `PostNorm` and `Sandwich` are its usual forms.
    """

    def __init__(
        self,
        attn: Attention,
        mlp: Mlp,
        norm1: Norm | None = None,
        norm2: Norm | None = None,
        post1: Norm | None = None,
        post2: Norm | None = None,
        scale1: Weight | None = None,
        scale2: Weight | None = None,
    ) -> None:
        self.attn, self.mlp = attn, mlp
        self.norm1, self.norm2, self.post1, self.post2 = norm1, norm2, post1, post2
        self.scale1, self.scale2 = scale1, scale2

    @property
    def attentions(self) -> Sequence[Attention]:
        return (self.attn,)

    @property
    def hidden(self) -> int:
        return self.mlp.hidden

    def inputs(self, x: Tensor) -> list[Tensor]:
        return [x if self.norm1 is None else self.norm1(x)]

    def mix(self, x: Tensor, context: Tensor, rows: slice | None = None) -> Tensor:
        """What the attention branch adds, `[B, r, d]`, from the heads' outputs `[B, h, r, d_v]` of some rows."""
        inner = None
        if self.attn.gate is not None:
            inner = self.inputs(x if rows is None else x[:, rows])[0]
        attended = self.attn.mix(context, inner)
        return scaled(self.scale1, attended if self.post1 is None else self.post1(attended))

    def run_contexts(self, x: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        y = x + self.mix(x, contexts[0])
        changed = self.mlp(y if self.norm2 is None else self.norm2(y))
        return y + scaled(self.scale2, changed if self.post2 is None else self.post2(changed))

    def forward(
        self, x: Tensor, grid: Grid, rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, BlockCache]:
        norms: dict[str, NormCache] = {}
        inner = self.inputs(x)[0]
        context, values = self.attn.context(inner, grid)
        attended, attention = self.attn.forward_mix(context, inner, rows, dtype, keep=True)
        del inner, context
        values = kept(values, dtype)
        if self.post1 is not None:
            before, (attended, statistics) = attended, self.post1.statistics(attended)
            norms["post1"] = self.post1.cache(before, statistics, rows)
        y = x + scaled(self.scale1, attended)
        del attended
        if self.norm2 is None:
            changed, mlp = self.mlp.forward(y, rows, dtype)
        else:
            normed, statistics = self.norm2.statistics(y)
            changed, mlp = self.mlp.forward(normed, rows, dtype)
            del normed
            norms["norm2"] = self.norm2.cache(y, statistics, rows)
        if self.post2 is not None:
            before, (changed, statistics) = changed, self.post2.statistics(changed)
            norms["post2"] = self.post2.cache(before, statistics, rows)
        return y + scaled(self.scale2, changed), BlockCache(values, count(x, rows), (attention,), (mlp,), norms)

    def lead(self, g: Tensor) -> Tensor | None:
        return None if self.post2 is not None else self.mlp.lead(scaled(self.scale2, g))

    def pull(self, cache: BlockCache, g: Tensor, lead: Tensor | None = None) -> Tensor:
        if lead is None:
            changed = scaled(self.scale2, g)
            if self.post2 is not None:
                changed = self.post2.pull(cache.norm("post2"), _of_rows(changed, cache.norm("post2")))
            lead = self.mlp.lead(changed)
        grad = self.mlp.pull(cache.mlp[0], lead.to(cache.mlp[0].derivative.dtype)).to(g.dtype)
        if self.norm2 is not None:
            grad = self.norm2.pull(cache.norm("norm2"), grad)
        e = grad.add_(g)
        if self.scale1 is not None:
            e *= self.scale1()
        if self.post1 is not None:
            e = self.post1.pull(cache.norm("post1"), e)
        return self.attn.pull(cache.attention[0], e.to(cache.values.dtype))


class PreNorm(Serial):
    """`y = x + s1 * attention(norm1(x))`, `z = y + s2 * mlp(norm2(y))`."""

    norm1: Norm
    norm2: Norm

    def __init__(
        self,
        norm1: Norm,
        attn: Attention,
        norm2: Norm,
        mlp: Mlp,
        scale1: Weight | None = None,
        scale2: Weight | None = None,
    ) -> None:
        super().__init__(attn, mlp, norm1, norm2, scale1=scale1, scale2=scale2)


def plain_block(block: Block, method: str) -> PreNorm:
    """The block, for a method with rules for the original pre-norm block alone.

    Raises:
        UnsupportedModelError: its attention, MLP or norms are of another kind.
    """
    if not isinstance(block, PreNorm):
        raise UnsupportedModelError(f"{method} needs pre-norm blocks, and this model has {type(block).__name__} blocks")
    if not block.attn.is_plain:
        raise UnsupportedModelError(
            f"{method} needs plain attention, without rotary positions, a bias, a gate or norms inside"
        )
    if type(block.mlp) is not Mlp or block.mlp.norm is not None:
        raise UnsupportedModelError(f"{method} needs a plain MLP, without a gate or a norm inside")
    if block.norm1.kind != "layer" or block.norm2.kind != "layer":
        raise UnsupportedModelError(f"{method} needs LayerNorm, and this model has another norm")
    return block


class PostNorm(Serial):
    """Norms behind the branches: `y = x + s1 * norm1(attention(x))`, `z = y + s2 * norm2(mlp(y))`."""

    def __init__(
        self,
        attn: Attention,
        norm1: Norm,
        mlp: Mlp,
        norm2: Norm,
        scale1: Weight | None = None,
        scale2: Weight | None = None,
    ) -> None:
        super().__init__(attn, mlp, post1=norm1, post2=norm2, scale1=scale1, scale2=scale2)


class Sandwich(Serial):
    """Norms on both sides: `y = x + s1 * post1(attention(norm1(x)))`, `z = y + s2 * post2(mlp(norm2(y)))`.

    `post1` or `post2` may be None.
    """

    def __init__(
        self,
        norm1: Norm,
        attn: Attention,
        post1: Norm | None,
        norm2: Norm,
        mlp: Mlp,
        post2: Norm | None,
        scale1: Weight | None = None,
        scale2: Weight | None = None,
    ) -> None:
        super().__init__(attn, mlp, norm1, norm2, post1, post2, scale1, scale2)
