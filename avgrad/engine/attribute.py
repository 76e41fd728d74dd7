"""The engine's one door: pixels and prompts in, heatmaps out, by any method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.attentioncam import attentioncam
from avgrad.engine.autograd import legrad_autograd
from avgrad.engine.chefercam import chefercam
from avgrad.engine.cosine import cosine
from avgrad.engine.grad_eclip import grad_eclip
from avgrad.engine.gradcam import gradcam
from avgrad.engine.legrad import Pooling, legrad
from avgrad.engine.legrad_last import legrad_last
from avgrad.engine.lrp import lrp, partial_lrp, transformer_attribution
from avgrad.engine.raw_attention import raw_attention
from avgrad.engine.rollout import rollout
from avgrad.engine.textspan import textspan
from avgrad.engine.view import ViTView

Method = Callable[..., Tensor]  # (view, pixels, prompts, layers, pooling, *, options of its own) -> maps

METHODS: dict[str, Method] = {
    "legrad": legrad,
    "legrad_autograd": legrad_autograd,
    "legrad_last": legrad_last,
    "raw_attention": raw_attention,
    "rollout": rollout,
    "gradcam": gradcam,
    "attentioncam": attentioncam,
    "chefercam": chefercam,
    "lrp": lrp,
    "partial_lrp": partial_lrp,
    "transformer_attribution": transformer_attribution,
    "textspan": textspan,
    "grad_eclip": grad_eclip,
    "cosine": cosine,
}


def options_of(method: str) -> tuple[str, ...]:
    """Names of the options that a method has of its own.

    >>> options_of("legrad"), options_of("gradcam"), options_of("cosine")
    (('relu', 'backward_dtype'), ('class_token', 'every_layer'), ())
    """
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Refuses options that a method does not have, or not with such a value.

    Raises:
        ValueError: there is one.
    """
    for option in options:
        if option not in options_of(method):
            known = ", ".join(options_of(method)) or "none"
            raise ValueError(f"method {method!r} has no option {option!r}; its options: {known}")
    if options.get("backward_dtype") not in (None, torch.bfloat16):
        raise ValueError(f"backward_dtype={options['backward_dtype']} is neither None nor torch.bfloat16")


# Methods whose maps an empty prompt corrects; where maps do not depend on the prompt, it would blank them.
CORRECTED = ("legrad", "legrad_autograd")
CORRECTION = 0.8  # the LeGrad paper's threshold


def resolve_correction(correction: float | Literal["default"] | None, view: ViTView, method: str) -> float | None:
    """The threshold that a `correction` argument means, None for no correction.

    Args:
        correction: "default" is 0.8 where the model has an empty prompt (those that pool by attention) and the method
            is LeGrad, no correction elsewhere; None and 0 mean no correction.
        view: the model.
        method: one of `METHODS`.

    Raises:
        ValueError: a threshold out of range, or one for a model or a method that cannot be corrected.
    """
    if correction == "default":
        return CORRECTION if view.empty_prompt is not None and method in CORRECTED else None
    if not correction:
        return None
    if not 0 < correction <= 1:
        raise ValueError(f"correction={correction} is no threshold in [0, 1]; the paper's is {CORRECTION}")
    if view.empty_prompt is None:
        raise ValueError("correction needs the embedding of an empty prompt, and this model has none")
    if method not in CORRECTED:
        raise ValueError(f"correction belongs to {' and '.join(CORRECTED)}, and not to {method}")
    return correction


def with_empty_prompt(view: ViTView, prompts: Tensor) -> Tensor:
    """Prompts `[B, P, D]` with the model's empty prompt behind them, `[B, P + 1, D]`."""
    if view.empty_prompt is None:
        raise ValueError("this model has no empty prompt")
    return torch.cat([prompts, view.empty_prompt.to(prompts).expand(len(prompts), 1, -1)], dim=1)


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


def check_pooling(pooling: str, view: ViTView) -> None:
    """Refuses what the model cannot pool by.

    Raises:
        ValueError: an unknown pooling, or the class token's for a model that has none.
    """
    if pooling not in ("mean", "cls"):
        raise ValueError(f"unknown pooling {pooling!r}; there are 'mean' and 'cls'")
    if pooling == "cls" and view.num_prefix_tokens < 1:
        raise ValueError("pooling='cls' needs a class token, and this model has none; use pooling='mean'")


def min_max(maps: Tensor) -> Tensor:
    """Each map `[..., h, w]` min-max normalized by its own smallest and largest value; a constant one becomes 0.

    >>> min_max(torch.tensor([[[1.0, 3.0], [2.0, 1.0]]]))
    tensor([[[0.0000, 1.0000],
             [0.5000, 0.0000]]])
    """
    return _min_max_(maps.clone())


def _min_max_(maps: Tensor) -> Tensor:
    """The same in place."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return maps.sub_(low).div_((high - low).clamp_min(torch.finfo(maps.dtype).tiny))


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `[B, P, gh, gw]` on the patch grid, bilinearly upsampled to `[B, P, *size]`."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def finish(
    view: ViTView, maps: Tensor, size: tuple[int, int], threshold: float | None = None, normalize: bool = True
) -> Tensor:
    """Heatmaps from maps summed over layers.

    Args:
        view: the model.
        maps: `[B, P, gh, gw]` on the patch grid; with a threshold `[B, P + 1, gh, gw]`, the last the empty prompt's.
        size: height and width of the heatmaps.
        threshold: zero the maps where the empty prompt's, min-max normalized, exceeds this (paper B.5, Eq. 13).
        normalize: min-max normalize each map: after it is upsampled, but for models that pool by attention before, as
            the released code does.

    Returns:
        `[B, P, *size]`.
    """
    if threshold is not None:
        maps, empty = maps[:, :-1], min_max(maps[:, -1:])
        maps = maps.masked_fill(empty > threshold, 0)
    if view.pooler is not None:
        return upsample(min_max(maps) if normalize else maps, size)
    maps = upsample(maps, size)
    return _min_max_(maps) if normalize else maps  # a hundred maps are large, so they are not copied


def attribute(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    method: str = "legrad",
    layers: int | Sequence[int] | None = None,
    pooling: Pooling = "mean",
    per_layer: bool = False,
    normalize: bool = True,
    correction: float | Literal["default"] | None = "default",
    **options: Any,
) -> Tensor:
    """Where in each image is what each prompt means?

    Args:
        view: the model's vision transformer (`model.vision`).
        pixels: preprocessed images, `[B, 3, h, w]`; h and w are multiples of the patch size, not necessarily equal.
        prompts: embeddings, `[P, D]` (the same for every image) or `[B, P, D]` (each image its own).
        method: one of `METHODS`; "legrad" is the paper's, in closed form.
        layers: None for all; an int k >= 0 for "from layer k", a negative one for "the last -k", a list for exactly
            those. Methods that look at one layer take the last of them.
        pooling: what a layer's score is of: "mean" of all tokens (LeGrad Eq. 3), or the "cls" token; of no meaning
            where the model pools by attention.
        per_layer: return the layers' raw maps on the patch grid, not summed, corrected, upsampled or normalized.
        normalize: min-max normalize each map.
        correction: zero each LeGrad map where that of the empty prompt "a photo of a" exceeds this (paper B.5, Eq. 13);
            None or 0 for not. The default is 0.8 for models with an empty prompt (those that pool by attention), else
            none.
        **options: what the method has of its own: `relu` of "legrad" and "legrad_last" (False keeps negative gradients,
            an ablation), `backward_dtype` of "legrad" (torch.bfloat16 is faster, see `avgrad.engine.legrad.legrad`),
            `class_token` and `every_layer` of "gradcam".

    Returns:
        Heatmaps `[B, P, h, w]`, float32 (float64 for a float64 model); with `per_layer` `[B, P, L, gh, gw]`.

    Raises:
        ValueError: an argument of the wrong shape, an unknown method, pooling, layer or option, or a correction that
            the model or the method does not have.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    check_options(method, options)
    check_pooling(pooling, view)
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
    threshold = None if per_layer else resolve_correction(correction, view, method)
    if threshold is not None:
        prompts = with_empty_prompt(view, prompts)
    maps = METHODS[method](view, pixels, prompts, resolve_layers(layers, len(view.blocks)), pooling, **options)
    maps = maps.unflatten(-1, view.grid(pixels))
    if per_layer:
        return maps
    return finish(view, maps.sum(2), (size[0], size[1]), threshold, normalize)
