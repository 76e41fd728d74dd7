"""Heatmaps by several methods from one forward pass, as far as they can share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from avgrad.engine.attention import Attention, Grid
from avgrad.engine.attribute import attribute
from avgrad.engine.blocks import Block, BlockCache
from avgrad.engine.legrad import images_at_once
from avgrad.engine.methods import Pooling, get_method, list_methods, parse_option, resolve_layers
from avgrad.engine.view import ViTView
from avgrad.errors import InputError
from eval.layer_ablation import METHOD, ablated_methods

# These need nothing but what goes into, through and out of one block; after "legrad", which goes through all of them,
# or after each other, they need no forward pass of their own.
OF_ONE_BLOCK = ("cosine", "raw_attention")


class _Remembering(Block):
    """A block that remembers its last input, and gives the output for it again without computing it anew."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.memory: tuple[Tensor, Tensor] | None = None

    @property
    def attentions(self) -> Sequence[Attention]:
        return self.block.attentions

    @property
    def hidden(self) -> int:
        return self.block.hidden

    @property
    def input(self) -> Tensor:
        """The last input."""
        assert self.memory is not None
        return self.memory[0]

    def inputs(self, x: Tensor) -> list[Tensor]:
        return self.block.inputs(x)

    def run_contexts(self, x: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        z = self.block.run_contexts(x, contexts)
        self.memory = (x, z)
        return z

    def __call__(self, x: Tensor, grid: Grid) -> Tensor:
        if self.memory is not None and self.memory[0] is x:
            return self.memory[1]
        return super().__call__(x, grid)

    def attention(self, x: Tensor, grid: Grid, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        if self.memory is None:
            self.memory = (x, self(x, grid))
        return super().attention(x, grid, rows)

    def forward(
        self, x: Tensor, grid: Grid, rows: slice | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, BlockCache]:
        z, cache = self.block.forward(x, grid, rows, dtype)
        self.memory = (x, z)
        return z, cache

    def lead(self, g: Tensor) -> Tensor | None:
        return self.block.lead(g)

    def pull(self, cache: BlockCache, g: Tensor, lead: Tensor | None = None) -> Tensor:
        return self.block.pull(cache, g, lead)


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """A method and its options, written as `NAME` or `NAME:option=value,...`.

    Args:
        text: `pooling` counts as an option of every method.

    Raises:
        InputError: the method is unknown, has no such option, or the value is of another type.

    >>> parse_method("legrad:relu=false,pooling=cls")
    ('legrad', {'relu': False, 'pooling': 'cls'})
    """
    name, _, rest = text.partition(":")
    get_method(name)
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, _, value = part.partition("=")
        if key != "pooling":
            options.update([parse_option(name, part)])
        elif value in get_args(Pooling):
            options["pooling"] = value
        else:
            raise InputError(f"{part!r} is not one of {', '.join(f'pooling={p}' for p in get_args(Pooling))}")
    return name, options


@torch.no_grad()
def attribute_all(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    methods: Sequence[str],
    layers: int | Sequence[int] | None = None,
    pooling: Pooling = "mean",
    layer_ablation: bool = False,
) -> dict[str, Tensor]:
    """Raw heatmaps on the patch grid by each of several methods.

    Args:
        view: the model's vision transformer.
        pixels: `[B, 3, h, w]`.
        prompts: `[B, P, D]`.
        methods: as `parse_method` takes them; in any order.
        layers: as in `avgrad.attribute`.
        pooling: as in `avgrad.attribute`.
        layer_ablation: whether to add legrad's maps from each further layer on; `methods` contain it.

    Returns:
        For each method what `avgrad.attribute(..., per_layer=True)` gives, summed over layers: float32
        `[B, P, gh, gw]`; the ablated maps by the names of `ablated_methods`.

    Raises:
        InputError: as `avgrad.attribute`.
    """
    group = images_at_once(view, pixels)
    if len(pixels) > group:  # "legrad" would split them itself, and the others see its last images alone
        parts = zip(pixels.split(group), prompts.split(group), strict=True)
        found = [attribute_all(view, *part, methods, layers, pooling, layer_ablation) for part in parts]
        return {name: torch.cat([maps[name] for maps in found]) for name in found[0]}
    chosen = resolve_layers(layers, len(view.blocks))
    last = view.blocks[chosen[-1]]
    shared = [name for name in list_methods() if name in methods and name in ("legrad", *OF_ONE_BLOCK)]
    if len(shared) < 2:
        shared = []
    maps = {}
    for text in methods:
        if text not in shared:
            name, options = parse_method(text)
            options = {"pooling": pooling, **options}
            maps[text] = attribute(view, pixels, prompts, name, chosen, per_layer=True, **options)
    if shared:
        block = _Remembering(last)
        blocks = [block if b is last else b for b in view.blocks]
        first, *others = shared  # "legrad" is the first, the only one of them that needs the layers before
        maps[first] = attribute(replace(view, blocks=blocks), pixels, prompts, first, chosen, pooling, per_layer=True)
        tail = replace(view, embed=lambda pixels: block.input, blocks=[block])
        for name in others:
            maps[name] = attribute(tail, pixels, prompts, name, [0], pooling, per_layer=True)
    summed = {name: maps[name].sum(2).float() for name in methods}
    if layer_ablation:
        for place, name in enumerate(ablated_methods(chosen), start=1):
            summed[name] = maps[METHOD][:, :, place:].sum(2).float()
    return summed
