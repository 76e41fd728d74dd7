"""LayerNorm and RMSNorm with their pull-back in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.engine.parts import Part, check_plain, resolve

Statistics = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class NormCache:
    """What a norm's pull-back needs.

    Attributes:
        normalized: the input less its mean (RMSNorm: as it is), over its deviation, `[..., d]`.
        rstd: the reciprocal of that deviation, `[..., 1]`, at least float32.
    """

    normalized: Tensor
    rstd: Tensor


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


class Norm(Part):
    """A norm over the last dimension, scaled and shifted.

    Args:
        module: the module that owns its weights.
        kind: "layer" (LayerNorm) or "rms" (RMSNorm, without mean and shift).
        weight: name of the scale `[d]`; None for no scale. A name that stands for None means the same.
        bias: name of the shift `[d]`; None for no shift.
        eps: added to the variance (RMSNorm: the mean square); None for the module's own `eps`.

    Raises:
        UnsupportedModelError: the module is of a type whose formula is not known, or was changed from outside.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: Literal["layer", "rms"] = "layer",
        weight: str | None = "weight",
        bias: str | None = "bias",
        eps: float | None = None,
    ) -> None:
        check_plain(module, "a plain norm")
        self.module, self.kind, self.weight_name, self.bias_name, self.own_eps = module, kind, weight, bias, eps

    @property
    def weight(self) -> Tensor | None:
        """`[d]`, read anew, or None."""
        return None if self.weight_name is None else resolve(self.module, self.weight_name)[1]

    @property
    def bias(self) -> Tensor | None:
        """`[d]`, read anew, or None."""
        return None if self.bias_name is None or self.kind == "rms" else resolve(self.module, self.bias_name)[1]

    def eps(self, dtype: torch.dtype) -> float:
        """What is added to the variance."""
        eps = getattr(self.module, "eps", None) if self.own_eps is None else self.own_eps
        return torch.finfo(dtype).eps if eps is None else float(eps)

    def _affine(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift in the dtype of the input."""
        weight, bias = self.weight, self.bias
        return None if weight is None else weight.to(x.dtype), None if bias is None else bias.to(x.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., d]` from `[..., d]`."""
        weight, bias = self._affine(x)
        if self.kind == "rms":
            return F.rms_norm(x, x.shape[-1:], weight, self.eps(x.dtype))
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps(x.dtype))

    def statistics(self, x: Tensor) -> tuple[Tensor, Statistics]:
        """The output, and statistics of the input from which `cache` goes on."""
        if self.kind == "rms":
            return self(x), (None, None)
        out, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], *self._affine(x), self.eps(x.dtype))
        return out, (mean, rstd)

    def cache(self, x: Tensor, statistics: Statistics = (None, None), rows: slice | None = None) -> NormCache:
        """What `pull` needs.

        Args:
            x: the input, `[..., d]`.
            statistics: what `statistics` gave for it, so as not to compute it again.
            rows: the tokens wanted of `[B, n, d]`; None for all.
        """
        mean, rstd = statistics
        if rows is not None:
            x = x[:, rows]
            mean, rstd = (None if t is None else t[:, rows] for t in (mean, rstd))
        if rstd is None or is_half(rstd.dtype):  # of half inputs a CPU gives half statistics, and CUDA float32 ones
            wide = x.float() if is_half(x.dtype) else x
            if self.kind == "rms":
                variance = wide.square().mean(-1, keepdim=True)
            else:
                variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
            rstd = (variance + self.eps(x.dtype)).rsqrt()
        normalized = x * rstd if self.kind == "rms" or mean is None else (x - mean).mul_(rstd)
        return NormCache(normalized.to(x.dtype), rstd if rows is None else rstd.clone())

    def pull(self, cache: NormCache, g: Tensor) -> Tensor:
        """Gradient of the input from that of the output.

        Args:
            cache: of inputs `[B, ..., d]`.
            g: `[B, P, ..., d]` for P prompts; it is overwritten.

        Returns:
            `[B, P, ..., d]`.
        """
        weight, normalized = self.weight, cache.normalized[:, None]
        grad = g if weight is None else g.mul_(weight)
        along = (grad * normalized).mean(-1, keepdim=True)
        if self.kind == "layer":
            grad -= grad.mean(-1, keepdim=True)
        return torch.addcmul(grad, normalized, along, value=-1).mul_(cache.rstd[:, None])

    def cast(self, dtype: torch.dtype) -> Norm:
        return self  # norms stay in the model's own dtype
