"""Self-attention: what makes its matrix, and the pull-back to what each head gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.mlp import of_rows
from avgrad.engine.norms import Norm, NormCache
from avgrad.engine.parts import Linear, Part, Weight

Grid = tuple[int, int]
Scale = float | Callable[[], Tensor]
HeadNorm = Callable[[Tensor], Tensor]
Rotary = Callable[[Tensor, Tensor, Grid], tuple[Tensor, Tensor]]
Bias = Callable[[Grid], Tensor]


def attention_matrix(
    q: Tensor, k: Tensor, scale: float | None = None, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """`softmax(scale q k^T + bias)` over the keys.

    Args:
        q, k: `[..., r, d_h]` and `[..., n, d_h]`.
        scale: None for `d_h ** -0.5`.
        bias: added to the logits, `[..., r, n]`.
        softcap: c of `c tanh(logits / c)`, in front of the bias; None for none.

    Returns:
        `[..., r, n]`.
    """
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits if bias is None else logits + bias).softmax(-1)


@dataclass(frozen=True, eq=False)
class AttentionCache:
    """What the pull-back needs where something stands between the heads and the output projection, for r tokens.

    Attributes:
        inner: of the norm in front of the projection, or None.
        gate: what multiplies the heads' outputs, `[B, r, h d_v]`, or None.
    """

    inner: NormCache | None = None
    gate: Tensor | None = None


class Attention(Part):
    """Multi-head self-attention.

    Args:
        qkv: query, key and value in one map (one behind the other), or a map of each.
        out: the output projection.
        num_heads: heads of the queries, h.
        num_kv_heads: heads of keys and values, each shared by `h / num_kv_heads` queries' heads; None for h.
        scale: factor of the logits, or what gives one of shape `[h, 1, 1]`; None for `d_h ** -0.5`.
        q_norm, k_norm, v_norm: of each head's queries, keys and values, over their last dimension.
        rotary: turns q and k `[B, h, n, d_h]` by the positions of a grid: `(q, k, grid) -> (q, k)`.
        bias: added to the logits, by grid: `(grid) -> [1 or h, n, n]`.
        gate: a map of the attention's input, whose sigmoid multiplies the heads' outputs; h d_v outputs, or one per
            head.
        inner_norm: norm of the heads' outputs, side by side, in front of the gate and the projection.
        head_scale: factor of each head's output, `[h, 1, 1]`.
        softcap: c of `c tanh(logits / c)`.
    """

    def __init__(
        self,
        qkv: Linear | Sequence[Linear],
        out: Linear,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        scale: Scale | None = None,
        q_norm: HeadNorm | None = None,
        k_norm: HeadNorm | None = None,
        v_norm: HeadNorm | None = None,
        rotary: Rotary | None = None,
        bias: Bias | None = None,
        gate: Linear | None = None,
        inner_norm: Norm | None = None,
        head_scale: Weight | None = None,
        softcap: float | None = None,
    ) -> None:
        self.qkv, self.out = (qkv if isinstance(qkv, Linear) else tuple(qkv)), out
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        self.scale, self.softcap = scale, softcap
        self.q_norm, self.k_norm, self.v_norm = q_norm, k_norm, v_norm
        self.rotary, self.bias = rotary, bias
        self.gate, self.inner_norm, self.head_scale = gate, inner_norm, head_scale

    @property
    def is_plain(self) -> bool:
        """Whether it is softmax attention and its output projection, with nothing else in between."""
        special = (self.scale, self.softcap, self.q_norm, self.k_norm, self.v_norm, self.rotary, self.bias)
        behind = (self.gate, self.inner_norm, self.head_scale)
        return all(part is None for part in (*special, *behind)) and self.num_kv_heads == self.num_heads

    @property
    def qkv_weight(self) -> Tensor:
        """The matrices of query, key and value one behind the other, `[(h + 2 h_kv) d_h, d]`."""
        return self.qkv.weight if isinstance(self.qkv, Linear) else torch.cat([part.weight for part in self.qkv])

    def _project(self, x: Tensor) -> list[Tensor]:
        """Query, key and value, `[B, heads, n, d_h]` each, before their norms."""
        if not isinstance(self.qkv, Linear):
            counts = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
            maps = zip(self.qkv, counts, strict=True)
            return [part(x).unflatten(-1, (count, -1)).transpose(1, 2) for part, count in maps]
        qkv = self.qkv(x)
        if self.num_kv_heads == self.num_heads:
            return list(qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind())
        heads = qkv.unflatten(-1, (self.num_heads + 2 * self.num_kv_heads, -1)).transpose(1, 2)
        return list(heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1))

    def heads(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every head, as the logits and the mean take them.

        Args:
            x: `[B, n, d]`.
            grid: rows and columns of patches.

        Returns:
            q and k `[B, h, n, d_h]`, v `[B, h, n, d_v]`.
        """
        q, k, v = self._project(x)
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        v = v if self.v_norm is None else self.v_norm(v)
        if self.rotary is not None:
            q, k = self.rotary(q, k, grid)
        if self.num_kv_heads != self.num_heads:
            k, v = (t.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1) for t in (k, v))
        return q, k, v

    def _scaled(self, q: Tensor) -> tuple[Tensor, float | None]:
        """Queries and the factor of the logits; a factor per head goes to the queries."""
        if callable(self.scale):
            return q * self.scale().to(q.dtype), 1.0
        return q, self.scale

    def _bias(self, q: Tensor, grid: Grid) -> Tensor | None:
        return None if self.bias is None else self.bias(grid).to(q.dtype)

    def matrix(self, x: Tensor, grid: Grid, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """The attention matrix `[B, h, n, n]` and the values `[B, h, n, d_v]`.

        Args:
            x: `[B, n, d]`.
            grid: rows and columns of patches.
            rows: the matrix's rows that are wanted; None for all.
        """
        q, k, v = self.heads(x, grid)
        (q, scale), bias = self._scaled(q), self._bias(q, grid)
        if rows is not None:
            q, bias = q[:, :, rows], None if bias is None else bias[..., rows, :]
        return attention_matrix(q, k, scale, bias, self.softcap), v

    def context(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """The heads' outputs and values, `[B, h, n, d_v]` each, by fused attention where there is one."""
        q, k, v = self.heads(x, grid)
        (q, scale), bias = self._scaled(q), self._bias(q, grid)
        if self.softcap is not None:
            return attention_matrix(q, k, scale, bias, self.softcap) @ v, v
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale), v

    def _gate(self, x: Tensor) -> Tensor:
        """What multiplies the heads' outputs, `[B, n, h d_v]`."""
        assert self.gate is not None
        gate = self.gate(x).sigmoid()
        width = self.out.in_features
        return gate if gate.shape[-1] == width else gate.repeat_interleave(width // gate.shape[-1], dim=-1)

    def mix(self, context: Tensor, x: Tensor | None = None) -> Tensor:
        """The attention's output `[B, r, d]` from its heads' `[B, h, r, d_v]`.

        Args:
            context: `[B, h, r, d_v]`.
            x: the attention's input at those r tokens, `[B, r, d]`; read by a gate alone.
        """
        return self.forward_mix(context, x)[0]

    def forward_mix(
        self,
        context: Tensor,
        x: Tensor | None = None,
        rows: slice | None = None,
        dtype: torch.dtype | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, AttentionCache]:
        """The same with what `pull` needs, for `rows` (None for all tokens), if `keep`."""
        if self.head_scale is not None:
            context = context * self.head_scale()
        mixed, inner, gate = context.transpose(1, 2).flatten(2), None, None
        if self.inner_norm is not None:
            before = mixed
            mixed, statistics = self.inner_norm.statistics(before)
            inner = self.inner_norm.cache(before, statistics, rows) if keep else None
        if self.gate is not None:
            assert x is not None
            gate = self._gate(x)
            mixed = mixed * gate
            gate = of_rows(gate, rows).to(dtype or gate.dtype) if keep else None
        return self.out(mixed), AttentionCache(inner, gate)

    def pull(self, cache: AttentionCache, e: Tensor) -> Tensor:
        """Gradient of the heads' outputs.

        Args:
            cache: what `forward_mix` kept.
            e: gradient of the attention's output, `[B, P, 1 or r, d]`.

        Returns:
            `[B, P, r, h, d_v]`, or `[B, P, 1, h, d_v]` where one gradient serves all tokens.
        """
        u = self.out.pull(e)
        if cache.gate is not None:
            u = u * cache.gate[:, None]
        if cache.inner is not None and self.inner_norm is not None:
            normalized = cache.inner.normalized
            wide = u.to(normalized.dtype).expand(-1, -1, normalized.shape[1], -1)
            u = self.inner_norm.pull(cache.inner, wide.clone()).to(u.dtype)
        u = u.unflatten(-1, (self.num_heads, -1))
        return u if self.head_scale is None else u * self.head_scale().flatten()[:, None].to(u.dtype)
