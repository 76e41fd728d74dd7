"""The engine's one door: pixels and prompts in, heatmaps out, by any method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.autograd import legrad_autograd
from avgrad.engine.cosine import cosine
from avgrad.engine.legrad import Pooling, legrad
from avgrad.engine.raw_attention import raw_attention
from avgrad.engine.vit import VisionTransformer

Method = Callable[[VisionTransformer, Tensor, Tensor, Sequence[int], Pooling], Tensor]

METHODS: dict[str, Method] = {
    "legrad": legrad,
    "legrad_autograd": legrad_autograd,
    "raw_attention": raw_attention,
    "cosine": cosine,
}


def resolve_layers(layers: int | Sequence[int] | None, num_layers: int) -> list[int]:
    """The layer numbers that a `layers` argument means, ascending.

    Args:
        layers: None for all, an int k >= 0 for "from layer k", a negative one for "the last -k", a list for exactly
            those (negative numbers count from the end).
        num_layers: how many the model has.

    Raises:
        ValueError: a layer that does not exist, or none at all.

    >>> resolve_layers(None, 4), resolve_layers(1, 4), resolve_layers(-2, 4), resolve_layers([3, 0], 4)
    ([0, 1, 2, 3], [1, 2, 3], [2, 3], [0, 3])
    """
    numbers = range(num_layers)
    if layers is None:
        return list(numbers)
    if isinstance(layers, int):
        if not -num_layers <= layers < num_layers:
            raise ValueError(f"layers={layers} is out of range: the model has layers 0 to {num_layers - 1}")
        return list(numbers[layers:])
    wrong = [layer for layer in layers if not -num_layers <= layer < num_layers]
    if wrong or not layers:
        what = f"has no layer {wrong[0]}" if wrong else "needs at least one layer"
        raise ValueError(f"layers={list(layers)} {what}: the model has layers 0 to {num_layers - 1}")
    return sorted({numbers[layer] for layer in layers})


def min_max(maps: Tensor) -> Tensor:
    """Each map `[..., h, w]` stretched to [0, 1] by its own smallest and largest value; a constant one becomes 0.

    >>> min_max(torch.tensor([[[1.0, 3.0], [2.0, 1.0]]]))
    tensor([[[0.0000, 1.0000],
             [0.5000, 0.0000]]])
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `[B, P, gh, gw]` on the patch grid, bilinearly enlarged to `[B, P, *size]`."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def attribute(
    view: VisionTransformer,
    pixels: Tensor,
    prompts: Tensor,
    method: str = "legrad",
    layers: int | Sequence[int] | None = None,
    pooling: Pooling = "mean",
    per_layer: bool = False,
    normalize: bool = True,
) -> Tensor:
    """Where in each picture is what each prompt means?

    Args:
        view: the model's vision transformer (`model.vision`).
        pixels: preprocessed pictures, `[B, 3, h, w]`; h and w are multiples of the patch size, not necessarily equal.
        prompts: embeddings, `[P, D]` (the same for every picture) or `[B, P, D]` (each picture its own).
        method: one of `METHODS`; "legrad" is the paper's, in closed form.
        layers: None for all; an int k >= 0 for "from layer k", a negative one for "the last -k", a list for exactly
            those. Methods that look at one layer take the last of them.
        pooling: what a layer's score is of: "mean" of all tokens (LeGrad Eq. 3), or the "cls" token.
        per_layer: return the layers' raw maps on the patch grid, not summed, enlarged or normalised.
        normalize: stretch each map to [0, 1].

    Returns:
        Heatmaps `[B, P, h, w]`, float32 (float64 for a float64 model); with `per_layer` `[B, P, L, gh, gw]`.

    Raises:
        ValueError: an argument of the wrong shape or an unknown method, pooling or layer.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if pooling not in ("mean", "cls"):
        raise ValueError(f"unknown pooling {pooling!r}; there are 'mean' and 'cls'")
    if pooling == "cls" and view.num_prefix_tokens < 1:
        raise ValueError("pooling='cls' needs a class token, and this model has none; use pooling='mean'")
    size = pixels.shape[-2:]
    if pixels.ndim != 4 or pixels.shape[1] != 3 or any(side < 1 or side % view.patch_size for side in size):
        raise ValueError(
            f"pixels are {list(pixels.shape)}; expected [B, 3, h, w] with h and w multiples of {view.patch_size}"
        )
    if prompts.ndim == 2:
        prompts = prompts.expand(pixels.shape[0], -1, -1)
    expected = (pixels.shape[0], view.embed_dim)
    if prompts.ndim != 3 or (prompts.shape[0], prompts.shape[2]) != expected or prompts.shape[1] < 1:
        raise ValueError(
            f"prompts are {list(prompts.shape)}; expected [P, D] or [B, P, D] with B = {expected[0]}, P >= 1 "
            f"and D = {expected[1]}"
        )
    prompts = prompts.to(view.device, view.dtype)
    maps = METHODS[method](view, pixels, prompts, resolve_layers(layers, len(view.blocks)), pooling)
    maps = maps.unflatten(-1, view.grid(pixels))
    if per_layer:
        return maps
    maps = upsample(maps.sum(2), (size[0], size[1]))
    return min_max(maps) if normalize else maps
