"""Blocks whose attention and MLP stand side by side, or that have several of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avgrad.engine.attention import Attention, Grid
from avgrad.engine.blocks import Block, BlockCache, count, joined, kept, scaled
from avgrad.engine.mlp import Mlp
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Part, Weight


class Parallel(Block):
    """Attention and MLP side by side: `z = x + s1 * attention(norm(x)) + s2 * mlp(norm(x))`.

    The MLP does not see the attention's output, so no gradient goes through it: `u = W_o^T (s1 g)`.

    Args:
        norm: in front of both.
        attn, mlp: the branches.
        scale1, scale2: their LayerScale factors.
        norm2: in front of the MLP, where that has one of its own.
    """

    def __init__(
        self,
        norm: Norm,
        attn: Attention,
        mlp: Mlp,
        scale1: Weight | None = None,
        scale2: Weight | None = None,
        norm2: Norm | None = None,
    ) -> None:
        self.norm, self.attn, self.mlp, self.norm2 = norm, attn, mlp, norm2
        self.scale1, self.scale2 = scale1, scale2

    @property
    def attentions(self) -> Sequence[Attention]:
        return (self.attn,)

    @property
    def hidden(self) -> int:
        return self.mlp.hidden

    def inputs(self, x: Tensor) -> list[Tensor]:
        return [self.norm(x)]

    def _branches(self, x: Tensor, attended: Tensor, inner: Tensor) -> Tensor:
        changed = self.mlp(inner if self.norm2 is None else self.norm2(x))
        return x + scaled(self.scale1, attended) + scaled(self.scale2, changed)

    def run_contexts(self, x: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        inner = self.norm(x)
        return self._branches(x, self.attn.mix(contexts[0], inner), inner)

    def forward(
        self, x: Tensor, grid: Grid, rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, BlockCache]:
        inner = self.norm(x)
        context, values = self.attn.context(inner, grid)
        attended, attention = self.attn.forward_mix(context, inner, rows, dtype, keep=True)
        return self._branches(x, attended, inner), BlockCache(kept(values, dtype), count(x, rows), (attention,))

    def pull(self, cache: BlockCache, g: Tensor, lead: Tensor | None = None) -> Tensor:
        return self.attn.pull(cache.attention[0], scaled(self.scale1, g).to(cache.values.dtype))


@dataclass(eq=False)
class AttentionBranch(Part):
    """`s * attention(norm(x))`."""

    norm: Norm
    attn: Attention
    scale: Weight | None = None


@dataclass(eq=False)
class MlpBranch(Part):
    """`s * mlp(norm(x))`."""

    norm: Norm
    mlp: Mlp
    scale: Weight | None = None


class ParallelThings(Block):
    """Several attentions side by side, then several MLPs side by side (Touvron et al. 2022): `y = x + sum_i
    attention_i(x)`, `z = y + sum_j mlp_j(y)`, each with its norm and LayerScale.

    Each attention has heads of its own, and LeGrad's mean is over all of them.
    """

    def __init__(self, attn: Sequence[AttentionBranch], mlp: Sequence[MlpBranch]) -> None:
        self.attn, self.mlp = list(attn), list(mlp)

    @property
    def attentions(self) -> Sequence[Attention]:
        return [branch.attn for branch in self.attn]

    @property
    def hidden(self) -> int:
        return max(branch.mlp.hidden for branch in self.mlp)

    def inputs(self, x: Tensor) -> list[Tensor]:
        return [branch.norm(x) for branch in self.attn]

    def run_contexts(self, x: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        y = x
        for branch, context in zip(self.attn, contexts, strict=True):
            inner = branch.norm(x) if branch.attn.gate is not None else None
            y = y + scaled(branch.scale, branch.attn.mix(context, inner))
        z = y
        for part in self.mlp:
            z = z + scaled(part.scale, part.mlp(part.norm(y)))
        return z

    def forward(
        self, x: Tensor, grid: Grid, rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, BlockCache]:
        found: list[Tensor] = []
        attentions, mlps, norms, y = [], [], {}, x
        for branch in self.attn:
            inner = branch.norm(x)
            context, v = branch.attn.context(inner, grid)
            attended, attention = branch.attn.forward_mix(context, inner, rows, dtype, keep=True)
            y = y + scaled(branch.scale, attended)
            found.append(v)
            attentions.append(attention)
        z = y
        for index, part in enumerate(self.mlp):
            normed, statistics = part.norm.statistics(y)
            changed, mlp = part.mlp.forward(normed, rows, dtype)
            z = z + scaled(part.scale, changed)
            mlps.append(mlp)
            norms[str(index)] = part.norm.cache(y, statistics, rows)
        values = kept(joined(found), dtype)
        return z, BlockCache(values, count(x, rows), tuple(attentions), tuple(mlps), norms)

    def pull(self, cache: BlockCache, g: Tensor, lead: Tensor | None = None) -> Tensor:
        e = g
        for index, (part, mlp) in enumerate(zip(self.mlp, cache.mlp, strict=True)):
            m = part.mlp.lead(scaled(part.scale, g)).to(mlp.derivative.dtype)
            e = e + part.norm.pull(cache.norm(str(index)), part.mlp.pull(mlp, m).to(g.dtype))
        pulled = [
            branch.attn.pull(attention, scaled(branch.scale, e).to(cache.values.dtype))
            for branch, attention in zip(self.attn, cache.attention, strict=True)
        ]
        return torch.cat(pulled, dim=3)
