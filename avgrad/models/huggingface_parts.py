"""What the views of transformers' models share: layers by their names, the library's own embeddings, and the proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avgrad.engine.attention import Attention, Bias, Rotary
from avgrad.engine.blocks import PreNorm
from avgrad.engine.mlp import Activation, GatedMlp, Mlp
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear, Weight
from avgrad.engine.view import ViTView, check_view
from avgrad.errors import UnsupportedModelError

ACTIVATIONS: dict[str, Activation] = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "QuickGELUActivation": "quick_gelu",
    "ReLU": "relu",
    "SiLUActivation": "silu",
    "SiLU": "silu",
}


def expect(module: nn.Module, *classes: str) -> Any:
    """A module of transformers, if it is of exactly one of these classes.

    Args:
        module: a layer of the model.
        *classes: their names, without the module that defines them.

    Raises:
        UnsupportedModelError: it is of another class, or a subclass.
    """
    cls = type(module)
    if cls.__qualname__ not in classes or not cls.__module__.startswith("transformers.models."):
        raise UnsupportedModelError(f"it has a {cls.__qualname__} where {' or '.join(classes)} is expected")
    return module


def activation(module: nn.Module) -> Activation:
    name = type(module).__name__
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(f"its activation is {name}; expected {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def attention(layer: Any, out: str, *, rotary: Rotary | None = None, bias: Bias | None = None) -> Attention:
    """Self-attention with one projection each for queries, keys and values.

    Args:
        layer: a module with `q_proj`, `k_proj`, `v_proj`.
        out: the name of its output projection.
        rotary, bias: as `Attention` takes them.
    """
    heads = getattr(layer, "num_heads", None) or layer.num_attention_heads
    maps = (Linear(layer.q_proj), Linear(layer.k_proj), Linear(layer.v_proj))
    return Attention(maps, Linear(getattr(layer, out)), heads, rotary=rotary, bias=bias)


def mlp(layer: Any, act: str = "activation_fn") -> Mlp:
    """An MLP by transformers' names: `fc1`, `fc2`, or `up_proj`, `down_proj`, gated where there is a `gate_proj`."""
    phi = activation(getattr(layer, act))
    if hasattr(layer, "gate_proj"):
        return GatedMlp(Linear(layer.gate_proj), Linear(layer.up_proj), Linear(layer.down_proj), phi)
    if hasattr(layer, "up_proj"):
        return Mlp(Linear(layer.up_proj), phi, Linear(layer.down_proj))
    return Mlp(Linear(layer.fc1), phi, Linear(layer.fc2))


def clip_block(layer: Any) -> PreNorm:
    """A block of CLIP's and SigLIP's encoders."""
    return PreNorm(
        Norm(layer.layer_norm1), attention(layer.self_attn, "out_proj"), Norm(layer.layer_norm2), mlp(layer.mlp)
    )


def layer_scale(layer: nn.Module, name: str) -> Weight | None:
    """A LayerScale factor by its dotted name; None where it is the number 1."""
    value = layer
    for part in name.split("."):
        value = getattr(value, part)
    return Weight(layer, name) if isinstance(value, Tensor) else None


def prove(view: ViTView, own: Callable[[Tensor], Tensor], name: str, size: tuple[int, int] | None = None) -> ViTView:
    """`check_view` at a small size, 2 x 3 patches, where the model takes other sizes than its own.

    Args:
        view: the view.
        own: the model's own embedding, `[B, D]` of pixels `[B, 3, h, w]`.
        name: of the model, for errors.
        size: the only size that the model takes; None where it takes others.
    """
    height, width = view.patch_shape
    return check_view(view, own, name, [size or (2 * height, 3 * width)])


class Embed:
    """The library's own embeddings: patches, positions, prefix tokens, and the norm behind them.

    Args:
        embeddings: the library's module.
        size: height and width that its positions are learned for, where `interpolate_pos_encoding` asks it to resample
            them for others; None where it resamples them by itself, or has none.
        norm: a module behind it, or None.
    """

    def __init__(
        self, embeddings: nn.Module, size: tuple[int, int] | None = None, norm: nn.Module | None = None
    ) -> None:
        self.embeddings, self.size, self.norm = embeddings, size, norm

    def __call__(self, pixels: Tensor) -> Tensor:
        options = {} if self.size is None else {"interpolate_pos_encoding": tuple(pixels.shape[-2:]) != self.size}
        tokens: Tensor = self.embeddings(pixels, **options)
        return tokens if self.norm is None else self.norm(tokens)


def pair(size: Any) -> tuple[int, int]:
    """A size of transformers, an int or two of them, as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def features(model: nn.Module, layers: list[nn.Module], pixels: Tensor, **options: Any) -> Tensor:
    """What a classifier's last layers read, side by side, `[B, D]`: the image embedding of a classifier."""
    found: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for layer in layers]
    try:
        model(pixels, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found, dim=-1)
