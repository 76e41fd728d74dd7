"""Heatmaps by several methods from one forward pass, as far as they can share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from avgrad.engine.attribute import attribute
from avgrad.engine.legrad import images_at_once
from avgrad.engine.methods import Pooling, list_methods, resolve_layers
from avgrad.engine.view import Block, ViTView

# These need nothing but what goes into, through and out of one block; after "legrad", which goes through all of them,
# or after each other, they need no forward pass of their own.
OF_ONE_BLOCK = ("cosine", "raw_attention")


@dataclass(frozen=True)
class _RememberingBlock(Block):
    """A block that does its work once for the same input tensor."""

    memory: dict[str, Any] = field(default_factory=dict)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.memory.get("input") is not x:
            self.memory.clear()
            self.memory.update(input=x, heads=super().heads(x))
        heads: tuple[Tensor, Tensor, Tensor] = self.memory["heads"]
        return heads

    def transform(self, y: Tensor, hidden: Tensor) -> Tensor:
        self.memory["output"] = output = super().transform(y, hidden)
        return output

    def __call__(self, x: Tensor) -> Tensor:
        if self.memory.get("input") is x and "output" in self.memory:
            output: Tensor = self.memory["output"]
            return output
        return super().__call__(x)


@torch.no_grad()
def attribute_all(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    methods: Sequence[str],
    layers: int | Sequence[int] | None = None,
    pooling: Pooling = "mean",
) -> dict[str, Tensor]:
    """Raw heatmaps on the patch grid by each of several methods.

    Args:
        view: the model's vision transformer.
        pixels: `[B, 3, h, w]`.
        prompts: `[B, P, D]`.
        methods: names in `avgrad.list_methods()`; in any order.
        layers: as in `avgrad.attribute`.
        pooling: as in `avgrad.attribute`.

    Returns:
        For each method what `avgrad.attribute(..., per_layer=True)` gives, summed over layers: float32
        `[B, P, gh, gw]`.

    Raises:
        ValueError: as `avgrad.attribute`.
    """
    group = images_at_once(view, pixels)
    if len(pixels) > group:  # "legrad" would split them itself, and the others see its last images alone
        parts = zip(pixels.split(group), prompts.split(group), strict=True)
        found = [attribute_all(view, *part, methods, layers, pooling) for part in parts]
        return {name: torch.cat([maps[name] for maps in found]) for name in methods}
    chosen = resolve_layers(layers, len(view.blocks))
    last = view.blocks[chosen[-1]]
    shared = [name for name in list_methods() if name in methods and name in ("legrad", *OF_ONE_BLOCK)]
    if len(shared) < 2 or type(last) is not Block:
        shared = []
    maps = {
        name: attribute(view, pixels, prompts, name, chosen, pooling, per_layer=True)
        for name in methods
        if name not in shared
    }
    if shared:
        block = _RememberingBlock(**{f.name: getattr(last, f.name) for f in fields(Block)})
        blocks = [block if b is last else b for b in view.blocks]
        first, *others = shared  # "legrad" is the first, the only one of them that needs the layers before
        maps[first] = attribute(replace(view, blocks=blocks), pixels, prompts, first, chosen, pooling, per_layer=True)
        tail = replace(view, embed=lambda pixels: block.memory["input"], blocks=[block])
        for name in others:
            maps[name] = attribute(tail, pixels, prompts, name, [0], pooling, per_layer=True)
    return {name: maps[name].sum(2).float() for name in methods}
