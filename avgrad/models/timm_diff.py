"""Differential attention (Ye et al. 2024, arXiv:2410.05258) as timm has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.attention import Attention, AttentionCache, Grid, attention_matrix
from avgrad.engine.norms import Norm, NormCache
from avgrad.engine.parts import Linear


@dataclass(frozen=True, eq=False)
class DiffCache(AttentionCache):
    """That of the attention, and that of the norm of each head's output."""

    sub: NormCache | None = None


class DiffAttention(Attention):
    """`A = softmax(q_1 k_1^T) - lambda softmax(q_2 k_2^T)`; each head's output `A v` is normalized and scaled.

    A is the one matrix that averages the values, so LeGrad's gradient is that of A, as of any attention. Its entries
    may be negative and its rows sum to `1 - lambda`: methods that take A for a distribution (rollout, raw attention)
    see it as it is.

    Args:
        module: timm's module, which computes its own lambda.
        qkv, out, q_norm, k_norm, inner_norm: as of `Attention`; queries and keys have two halves per head.
        sub_norm: norm of each head's output.
    """

    def __init__(
        self,
        module: Any,
        qkv: Linear,
        out: Linear,
        sub_norm: Norm,
        *,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        inner_norm: Norm | None = None,
    ) -> None:
        super().__init__(qkv, out, module.num_heads, q_norm=q_norm, k_norm=k_norm, inner_norm=inner_norm)
        self.module, self.sub_norm = module, sub_norm

    @property
    def is_plain(self) -> bool:
        return False

    def heads(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """q and k `[B, 2 h, n, d_h]`, both of a head one behind the other, and v `[B, h, n, d_v]`."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # type: ignore[operator]
        q, k = (t.unflatten(-1, (2 * self.num_heads, -1)).transpose(1, 2) for t in (q, k))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        return q, k, v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _lambda(self, x: Tensor) -> Tensor:
        value: Tensor = self.module._compute_lambda().to(x.dtype)
        return value

    def matrix(self, x: Tensor, grid: Grid, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.heads(x, grid)
        both = attention_matrix(q if rows is None else q[:, :, rows], k).unflatten(1, (-1, 2))
        return both[:, :, 0] - self._lambda(x) * both[:, :, 1], v

    def context(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        q, k, v = self.heads(x, grid)
        first, second = (F.scaled_dot_product_attention(q[:, i::2], k[:, i::2], v) for i in (0, 1))
        return first - self._lambda(x) * second, v

    @property
    def _factor(self) -> float:
        """What scales each head's normalized output."""
        return 1 - float(self.module.lambda_init)

    def forward_mix(
        self,
        context: Tensor,
        x: Tensor | None = None,
        rows: slice | None = None,
        dtype: torch.dtype | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, AttentionCache]:
        before = context.transpose(1, 2)  # [B, n, h, d_v]
        normed, statistics = self.sub_norm.statistics(before)
        out, cache = super().forward_mix((normed * self._factor).transpose(1, 2), x, rows, dtype, keep)
        sub = self.sub_norm.cache(before, statistics, rows) if keep else None
        return out, DiffCache(cache.inner, cache.gate, sub)

    def pull(self, cache: AttentionCache, e: Tensor) -> Tensor:
        u = super().pull(cache, e)
        assert isinstance(cache, DiffCache) and cache.sub is not None
        normalized = cache.sub.normalized
        wide = u.to(normalized.dtype).expand(-1, -1, normalized.shape[1], -1, -1) * self._factor
        return self.sub_norm.pull(cache.sub, wide).to(u.dtype)
