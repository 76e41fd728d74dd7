"""timm's layers as parts of the engine's blocks: norms, activations and MLPs.

Layers are known by exact type. What is not known is refused by name, and so are layers and weights that another release
of timm may add to a known one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from timm.layers import activations
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import GluMlp, SwiGLU
from timm.layers.mlp import Mlp as TimmMlp
from timm.layers.norm import LayerNorm, LayerNormFp32, RmsNorm, RmsNormFp32
from timm.models.vitamin import GeGluMlp
from torch import Tensor, nn

from avgrad.engine.mlp import Activation, GatedMlp, Mlp, MlpCache
from avgrad.engine.norms import Norm, NormCache
from avgrad.engine.parts import Linear, Weight, accept_types
from avgrad.errors import UnsupportedModelError

LAYER_NORMS = (nn.LayerNorm, LayerNorm, LayerNormFp32)
RMS_NORMS = (nn.RMSNorm, RmsNorm, RmsNormFp32)
accept_types(*LAYER_NORMS, *RMS_NORMS)

_ACTIVATIONS: dict[type, Activation] = {
    activations.GELU: "gelu",
    activations.GELUTanh: "gelu_tanh",
    activations.QuickGELU: "quick_gelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    activations.Swish: "silu",
    nn.Sigmoid: "sigmoid",
    activations.Sigmoid: "sigmoid",
    nn.Identity: "identity",
}


def refuse(part: str) -> UnsupportedModelError:
    """The error that a part of a model cannot be expressed. `timm_view.trunk_view` puts the model's name in front."""
    return UnsupportedModelError(part)


def check_parts(module: nn.Module, known: str) -> None:
    """Refuses a module with layers or weights of its own that other releases of timm may add."""
    parts = [*module.named_parameters(recurse=False), *module.named_children()]
    for name, part in parts:
        if name not in known.split() and type(part) not in (nn.Identity, nn.Dropout):
            raise refuse(f"its {type(module).__name__} has a part {name!r}, which is not known here")


def norm(module: nn.Module) -> Norm | None:
    """A LayerNorm or RMSNorm; None for nothing."""
    if type(module) is nn.Identity:
        return None
    if type(module) in LAYER_NORMS:
        return Norm(module)
    if type(module) in RMS_NORMS:
        return Norm(module, "rms")
    raise refuse(f"it has a {type(module).__name__} where a LayerNorm or RMSNorm is expected")


def needed_norm(module: nn.Module) -> Norm:
    """The same, where there has to be one."""
    found = norm(module)
    if found is None:
        raise refuse("its blocks have no norm where one is expected")
    return found


def activation(module: nn.Module) -> Activation:
    """The engine's name of an activation."""
    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    if type(module) not in _ACTIVATIONS:
        known = "GELU, QuickGELU, ReLU, SiLU or Sigmoid"
        raise refuse(f"its activation is {type(module).__name__}, and {known} is expected")
    return _ACTIVATIONS[type(module)]


def layer_scale(block: nn.Module, name: str) -> Weight | None:
    """The LayerScale factor `[d]` that is a child (`ls1`) or a parameter (`gamma_1`) of a block; None for none."""
    scale = getattr(block, name, None)
    if scale is None or type(scale) is nn.Identity:
        return None
    if isinstance(scale, nn.Parameter):
        return Weight(block, name)
    if type(scale) is not LayerScale:
        raise refuse(f"it has a {type(scale).__name__} where a LayerScale is expected")
    return Weight(scale, "gamma")


@dataclass(frozen=True, eq=False)
class NormedMlpCache(MlpCache):
    """That of the MLP, and that of the norm in front."""

    front: NormCache | None = None


class NormedMlp(GatedMlp):
    """A gated MLP with a norm of its own in front (ViTamin), behind that of the block."""

    def __init__(self, front: Norm, gate: Linear, value: Linear, out: Linear, act: Activation) -> None:
        super().__init__(gate, value, out, act)
        self.front = front

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(self.front(x))

    def forward(
        self, x: Tensor, rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, NormedMlpCache]:
        normed, statistics = self.front.statistics(x)
        out, cache = super().forward(normed, rows, dtype)
        inner = {field.name: getattr(cache, field.name) for field in fields(cache)}
        return out, NormedMlpCache(**inner, front=self.front.cache(x, statistics, rows))

    def pull(self, cache: MlpCache, m: Tensor) -> Tensor:
        assert isinstance(cache, NormedMlpCache) and cache.front is not None
        grad = super().pull(cache, m)
        return self.front.pull(cache.front, grad.to(cache.front.normalized.dtype))


def mlp(module: Any) -> Mlp:
    """An MLP of timm: plain, or gated (SwiGLU, GEGLU) with separate or packed weights."""
    if type(module) is TimmMlp:
        check_parts(module, "fc1 act norm fc2")
        return Mlp(Linear(module.fc1), activation(module.act), Linear(module.fc2), norm(module.norm))
    if type(module) is GluMlp:
        check_parts(module, "fc1 act norm fc2")
        width = module.fc1.weight.shape[0]
        halves = (0, width // 2), (width // 2, width)
        gate, value = (Linear(module.fc1, rows=rows) for rows in (halves[::-1] if module.gate_last else halves))
        return GatedMlp(gate, value, Linear(module.fc2), activation(module.act), norm(module.norm))
    if type(module) is SwiGLU:
        check_parts(module, "fc1_g fc1_x act norm fc2")
        gate, value, out = Linear(module.fc1_g), Linear(module.fc1_x), Linear(module.fc2)
        return GatedMlp(gate, value, out, activation(module.act), norm(module.norm))
    if type(module) is GeGluMlp:
        check_parts(module, "norm w0 act w1 w2")
        gate, value, out = Linear(module.w0), Linear(module.w1), Linear(module.w2)
        return NormedMlp(needed_norm(module.norm), gate, value, out, activation(module.act))
    raise refuse(f"its MLP is a {type(module).__name__}, and timm's Mlp, GluMlp or SwiGLU is expected")
