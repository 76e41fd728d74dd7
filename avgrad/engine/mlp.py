"""MLPs, plain and gated, and their activations, with their pull-backs in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.norms import Norm, NormCache
from avgrad.engine.parts import Linear, Part

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "sigmoid", "identity"]


def activate(name: Activation, x: Tensor) -> Tensor:
    """The activation phi of an MLP, elementwise."""
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if name == "silu":
        return F.silu(x)
    if name == "sigmoid":
        return torch.sigmoid(x)
    return F.relu(x) if name == "relu" else x


def activation_derivative_(name: Activation, x: Tensor) -> Tensor:
    """The derivative phi' of an activation at its input, elementwise, in closed form, in the input's own memory."""
    if name in ("gelu", "gelu_tanh"):
        one = torch.ones((), dtype=x.dtype, device=x.device).expand_as(x)
        approximate = "tanh" if name == "gelu_tanh" else "none"
        derivative: Tensor = torch.ops.aten.gelu_backward.grad_input(one, x, approximate=approximate, grad_input=x)
        return derivative
    if name in ("quick_gelu", "silu"):
        factor = 1.702 if name == "quick_gelu" else 1.0
        gate = torch.sigmoid(factor * x)
        return x.mul_(factor).mul_(1 - gate).add_(1).mul_(gate)
    if name == "sigmoid":
        gate = torch.sigmoid(x)
        return x.copy_(gate).mul_(1 - gate)
    return x.gt_(0) if name == "relu" else x.fill_(1)


def of_rows(x: Tensor, rows: slice | None) -> Tensor:
    """The wanted tokens of `[B, n, d]`, in memory of their own; None for all, as they are."""
    return x if rows is None else x[:, rows].clone()


@dataclass(frozen=True, eq=False)
class MlpCache:
    """What an MLP's pull-back needs, for r tokens.

    Attributes:
        derivative: of the hidden features by the pre-activations, `[B, r, d_hidden]`: phi'(a), gated phi'(a) b.
        gated: of the hidden features by the value b, `[B, r, d_hidden]`: phi(a); None for a plain MLP.
        norm: of the norm inside; None for none.
    """

    derivative: Tensor
    gated: Tensor | None = None
    norm: NormCache | None = None


class Mlp(Part):
    """`W_2 norm(phi(W_1 x))`.

    Args:
        fc1: `W_1` with its bias.
        act: phi.
        fc2: `W_2` with its bias.
        norm: a norm between the two, or None.
    """

    def __init__(self, fc1: Linear, act: Activation, fc2: Linear, norm: Norm | None = None) -> None:
        self.fc1, self.act, self.fc2, self.norm = fc1, act, fc2, norm

    @property
    def hidden(self) -> int:
        """Numbers per token between its two ends."""
        return self.fc1.out_features

    def finish(self, hidden: Tensor) -> Tensor:
        """The output `[..., d]` from the activated hidden features `[..., d_hidden]`."""
        return self.fc2(hidden if self.norm is None else self.norm(hidden))

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., d]` from `[..., d]`."""
        return self.finish(activate(self.act, self.fc1(x)))

    def forward(
        self, x: Tensor, rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, MlpCache]:
        """The output of `[B, n, d]`, and what `pull` needs.

        Args:
            x: `[B, n, d]`.
            rows: the tokens that the cache is of; None for all.
            dtype: of the cache; None for that of `x`.
        """
        pre = self.fc1(x)
        if self.norm is None:
            out, norm = self.fc2(activate(self.act, pre)), None
        else:
            out, norm = self._normed(activate(self.act, pre), rows)
        derivative = activation_derivative_(self.act, of_rows(pre, rows))
        return out, MlpCache(derivative.to(dtype or x.dtype), norm=norm)

    def _normed(self, hidden: Tensor, rows: slice | None) -> tuple[Tensor, NormCache]:
        assert self.norm is not None
        normed, statistics = self.norm.statistics(hidden)
        return self.fc2(normed), self.norm.cache(hidden, statistics, rows)

    def lead(self, g: Tensor) -> Tensor:
        """The first step of the pull-back, `[..., d_hidden]` from the output's gradient `[..., d]`; it is the same for
        every token, so that one product serves all tokens that share a gradient."""
        return self.fc2.pull(g)

    def _through_norm(self, cache: MlpCache, m: Tensor) -> Tensor:
        if self.norm is None or cache.norm is None:
            return m
        wide = m.to(cache.norm.normalized.dtype).expand(-1, -1, cache.derivative.shape[1], -1)
        return self.norm.pull(cache.norm, wide.clone()).to(m.dtype)

    def pull(self, cache: MlpCache, m: Tensor) -> Tensor:
        """Gradient of the input.

        Args:
            cache: what `forward` gave.
            m: what `lead` gave, `[B, P, 1 or r, d_hidden]`.

        Returns:
            `[B, P, r, d]`, in the cache's dtype.
        """
        return self.fc1.pull(cache.derivative[:, None] * self._through_norm(cache, m))


class GatedMlp(Mlp):
    """`W_3 norm(phi(W_a x) * W_b x)`: SwiGLU, GEGLU.

    Args:
        gate: `W_a`, whose output is activated.
        value: `W_b`, whose output is not.
        out: `W_3`.
        act: phi.
        norm: a norm in front of `W_3`, or None.
    """

    def __init__(self, gate: Linear, value: Linear, out: Linear, act: Activation, norm: Norm | None = None) -> None:
        super().__init__(gate, act, out, norm)
        self.value = value

    @property
    def hidden(self) -> int:
        return 2 * self.fc1.out_features

    def __call__(self, x: Tensor) -> Tensor:
        return self.finish(activate(self.act, self.fc1(x)) * self.value(x))

    def forward(
        self, x: Tensor, rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, MlpCache]:
        dtype = dtype or x.dtype
        pre, value = self.fc1(x), self.value(x)
        activated = activate(self.act, pre)
        if self.norm is None:
            out, norm = self.fc2(activated * value), None
        else:
            out, norm = self._normed(activated * value, rows)
        derivative = activation_derivative_(self.act, of_rows(pre, rows)).mul_(
            value if rows is None else value[:, rows]
        )
        return out, MlpCache(derivative.to(dtype), of_rows(activated, rows).to(dtype), norm)

    def pull(self, cache: MlpCache, m: Tensor) -> Tensor:
        assert cache.gated is not None
        m = self._through_norm(cache, m)
        grad = self.fc1.pull(cache.derivative[:, None] * m)
        return grad.add_(self.value.pull(cache.gated[:, None] * m))
