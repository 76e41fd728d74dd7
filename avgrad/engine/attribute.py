"""The engine's entry point: pixels and prompts in, heatmaps out, by any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.methods import Method, Pooling, check_options, check_pooling, get_method, resolve_layers
from avgrad.engine.view import ViTView
from avgrad.errors import InputError, PromptError

CORRECTION = 0.8  # the LeGrad paper's threshold
Correction = float | Literal["default"] | None


class HasVision(Protocol):
    """A model with a view: what `avgrad.load` gives."""

    @property
    def vision(self) -> ViTView: ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """The part of an explanation that does not depend on the prompts; `prepare` makes it, `explain` goes on from it.

    Attributes:
        view: the model's view.
        pixels: `[B, 3, h, w]`.
        method: the attribution method.
        layers: the layers asked for, ascending.
        pooling: "mean" or "cls".
        options: the method's own options.
        caches: what the method keeps of the forward pass; None where it keeps nothing.
        embedding: the model's own unit-norm image embeddings `[B, D]`; None where no forward pass has run yet.
    """

    view: ViTView
    pixels: Tensor
    method: Method
    layers: list[int]
    pooling: Pooling
    options: Mapping[str, Any]
    caches: Any = None
    embedding: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """What `explain` gives for B images and P prompts.

    Attributes:
        heatmaps: `[B, P, *size]`, float32 (float64 for a float64 model).
        layer_maps: raw maps on the patch grid, `[B, P, L, gh, gw]`.
        embedding: the model's own unit-norm image embeddings, `[B, D]`.
        layers: the layers that `layer_maps` are of: L of them, or those that one map is made of.
    """

    heatmaps: Tensor
    layer_maps: Tensor
    embedding: Tensor
    layers: list[int]


def as_view(model: HasVision | ViTView) -> ViTView:
    """The view of a model, or the view itself.

    Raises:
        InputError: it is neither.
    """
    view = model if isinstance(model, ViTView) else getattr(model, "vision", None)
    if not isinstance(view, ViTView):
        raise InputError(f"model is a {type(model).__name__}; a model of avgrad.load or a ViTView is expected")
    return view


def resolve_correction(correction: Correction, view: ViTView, method: str) -> float | None:
    """The threshold that a `correction` argument means, None for no correction.

    Args:
        correction: "default" is 0.8 where the model has an empty prompt (those that pool by attention, but not CoCa,
            as in the released code) and the method is LeGrad, no correction elsewhere; None and 0 mean no correction.
        view: the model.
        method: its name.

    Raises:
        InputError: a threshold out of range, or one for a model or a method that cannot be corrected.
    """
    corrected = get_method(method).corrected
    if isinstance(correction, str):
        if correction != "default":
            raise InputError(f"correction={correction!r} is not 'default', None or a threshold in [0, 1]")
        return CORRECTION if view.empty_prompt is not None and view.is_corrected and corrected else None
    if not correction:
        return None
    if not 0 < correction <= 1:
        raise InputError(f"correction={correction} is not a threshold in [0, 1]; the paper's is {CORRECTION}")
    if view.empty_prompt is None:
        raise InputError("correction needs the embedding of an empty prompt, and this model has none")
    if not corrected:
        raise InputError(f"correction belongs to LeGrad, and not to {method}")
    return float(correction)


def with_empty_prompt(view: ViTView, prompts: Tensor) -> Tensor:
    """Prompts `[B, P, D]` with the model's empty prompt behind them, `[B, P + 1, D]`."""
    if view.empty_prompt is None:
        raise InputError("this model has no empty prompt")
    return torch.cat([prompts, view.empty_prompt.to(prompts).expand(len(prompts), 1, -1)], dim=1)


def min_max(maps: Tensor) -> Tensor:
    """Each map `[..., h, w]` min-max normalized to [0, 1]; a constant one becomes 0.

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


def normalizes_first(view: ViTView) -> bool:
    """Whether maps are min-max normalized before they are upsampled, as the released code does with SigLIP."""
    return view.is_corrected


def normalized(maps: Tensor, size: tuple[int, int], first: bool) -> Tensor:
    """Maps `[B, P, gh, gw]` upsampled and min-max normalized: normalized first, or afterwards."""
    if first:
        return upsample(min_max(maps), size)
    return _min_max_(upsample(maps, size))  # a hundred maps are large, so they are not copied


def finish(
    view: ViTView, maps: Tensor, size: tuple[int, int], threshold: float | None = None, normalize: bool = True
) -> Tensor:
    """Heatmaps from maps summed over layers.

    Args:
        view: the model.
        maps: `[B, P, gh, gw]` on the patch grid; with a threshold `[B, P + 1, gh, gw]`, the last the empty prompt's.
        size: height and width of the heatmaps.
        threshold: zero the maps where the empty prompt's, min-max normalized, exceeds this (paper B.5, Eq. 13).
        normalize: min-max normalize each map: after it is upsampled, but for models that pool by attention (not CoCa)
            before, as the released code does.

    Returns:
        `[B, P, *size]`.
    """
    if threshold is not None:
        maps, empty = maps[:, :-1], min_max(maps[:, -1:])
        maps = maps.masked_fill(empty > threshold, 0)
    return normalized(maps, size, normalizes_first(view)) if normalize else upsample(maps, size)


def check_pixels(view: ViTView, pixels: Tensor) -> None:
    """Refuses what is no batch of preprocessed images.

    Raises:
        InputError: the wrong type, dtype or shape.
    """
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
        found = str(pixels.dtype) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise InputError(f"pixels are {found}; expected a floating-point tensor, as model.preprocess gives")
    size, (height, width) = tuple(pixels.shape[-2:]), view.patch_shape
    fits = pixels.ndim == 4 and pixels.shape[1] == 3 and min(size) > 0
    if view.image_size is not None:
        if not fits or size != view.image_size:
            raise InputError(
                f"pixels are {list(pixels.shape)}; expected [B, 3, {view.image_size[0]}, {view.image_size[1]}]: this "
                "model takes images of that size alone"
            )
    elif not fits or size[0] % height or size[1] % width:
        multiples = f"h and w multiples of {height}" if height == width else f"multiples of {height} and {width}"
        raise InputError(f"pixels are {list(pixels.shape)}; expected [B, 3, h, w] with {multiples}")
    if not len(pixels):
        raise InputError("pixels are an empty batch; expected [B, 3, h, w] with B >= 1")
    if len(pixels) % view.num_frames:
        raise InputError(f"pixels are {len(pixels)} images; expected a multiple of {view.num_frames}, a video's frames")


def check_prompts(view: ViTView, prompts: Tensor, batch: int) -> Tensor:
    """Prompts `[P, D]` or `[B, P, D]` as `[B, P, D]`, on the model's device and in its dtype.

    Raises:
        PromptError: the wrong type or shape, or a number that is not finite.
    """
    if not isinstance(prompts, Tensor) or not prompts.is_floating_point():
        found = str(prompts.dtype) if isinstance(prompts, Tensor) else type(prompts).__name__
        raise PromptError(f"prompts are {found}; expected a floating-point tensor [P, D] or [B, P, D]")
    given = prompts.expand(batch, -1, -1) if prompts.ndim == 2 else prompts
    expected = (batch, view.embed_dim)
    if given.ndim != 3 or (given.shape[0], given.shape[2]) != expected or given.shape[1] < 1:
        raise PromptError(
            f"prompts are {list(prompts.shape)}; expected [P, D] or [B, P, D] with B = {batch}, P >= 1 "
            f"and D = {expected[1]}"
        )
    return given.to(view.device, view.dtype)


def prepare(
    model: HasVision | ViTView,
    pixels: Tensor,
    method: str = "legrad",
    layers: int | Sequence[int] | None = None,
    pooling: Pooling = "mean",
    *,
    keep: bool = True,
    **options: Any,
) -> Prepared:
    """The forward pass over a batch of images, kept for the prompts to come.

    Args:
        model, pixels, method, layers, pooling, **options: as in `attribute`.
        keep: run the forward pass now and keep what the method needs of it for any prompt (for LeGrad about `6 n d`
            numbers per layer for n tokens of width d). Without it, each `explain` runs the forward pass again, in the
            memory of one layer. Methods that have nothing to keep do so anyway.

    Raises:
        InputError: as `attribute`.
    """
    view, chosen = as_view(model), get_method(method)
    check_options(method, options)
    check_pooling(pooling, view)
    check_pixels(view, pixels)
    numbers = resolve_layers(layers, len(view.blocks))
    caches, embedding = None, None
    if keep and chosen.prepare is not None:
        caches, embedding = chosen.prepare(view, pixels, numbers, pooling, **options)
    return Prepared(view, pixels, chosen, numbers, pooling, options, caches, embedding)


def _maps(prepared: Prepared, prompts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Raw maps `[B, P, L, gh, gw]`, and the image embeddings `[B, D]` where they came by the way."""
    view, method, embedding = prepared.view, prepared.method, prepared.embedding
    if prepared.caches is not None and method.explain is not None:
        maps = method.explain(view, prepared.caches, prompts, **prepared.options)
    else:
        arguments = (view, prepared.pixels, prompts, prepared.layers, prepared.pooling)
        if method.once is None:
            maps = method.function(*arguments, **prepared.options)
        else:
            maps, embedding = method.once(*arguments, **prepared.options)
    maps = maps.unflatten(-1, view.grid(prepared.pixels))
    if not torch.isfinite(maps).all():
        raise InputError("the heatmaps are not finite: the model's weights, the pixels or the prompts hold NaN or inf")
    return maps, embedding


def explain(
    prepared: Prepared,
    prompts: Tensor,
    size: tuple[int, int] | None = None,
    *,
    normalize: bool = True,
    correction: Correction = "default",
) -> Explanation:
    """Heatmaps of further prompts from a forward pass that `prepare` kept.

    Args:
        prepared: what `prepare` gave.
        prompts: as in `attribute`.
        size: height and width of the heatmaps; None for those of the pixels.
        normalize, correction: as in `attribute`.

    Raises:
        InputError, PromptError: as `attribute`.
    """
    view, pixels = prepared.view, prepared.pixels
    prompts = check_prompts(view, prompts, len(pixels))
    count = prompts.shape[1]
    threshold = resolve_correction(correction, view, prepared.method.name)
    maps, embedding = _maps(prepared, prompts if threshold is None else with_empty_prompt(view, prompts))
    height, width = size or pixels.shape[-2:]
    return Explanation(
        heatmaps=finish(view, maps.sum(2), (height, width), threshold, normalize),
        layer_maps=maps[:, :count],
        embedding=view.encode(pixels) if embedding is None else embedding,
        layers=prepared.method.layers(view, prepared.layers, prepared.options),
    )


def attribute(
    model: HasVision | ViTView,
    pixels: Tensor,
    prompts: Tensor,
    method: str = "legrad",
    layers: int | Sequence[int] | None = None,
    pooling: Pooling = "mean",
    per_layer: bool = False,
    normalize: bool = True,
    correction: Correction = "default",
    **options: Any,
) -> Tensor:
    """Where in each image is what each prompt means?

    Args:
        model: a model of `avgrad.load`, or a view (`model.vision`, `avgrad.view(module)`).
        pixels: preprocessed images, `[B, 3, h, w]`; h and w are multiples of the patch size, not necessarily equal.
        prompts: embeddings, `[P, D]` (the same for every image) or `[B, P, D]` (each image its own).
        method: one of `avgrad.list_methods()`; "legrad" is the paper's, in closed form.
        layers: None for all; an int k >= 0 for "from layer k", a negative one for "the last -k", a list for exactly
            those. Methods that look at one layer take the last of them.
        pooling: what a layer's score is of: "mean" of all tokens (LeGrad Eq. 3), or the "cls" token; ignored when the
            model pools by attention.
        per_layer: return the layers' raw maps on the patch grid, not summed, corrected, upsampled or normalized.
        normalize: min-max normalize each map.
        correction: zero each LeGrad map where that of the empty prompt "a photo of a" exceeds this (paper B.5, Eq. 13);
            None or 0 for not. The default is 0.8 for models with an empty prompt (those that pool by attention), but
            none for CoCa, as in the released code.
        **options: the method's own, such as `relu` of "legrad" (False keeps negative gradients, an ablation) or
            `backward_dtype` of "legrad" (torch.bfloat16 is faster, see `avgrad.engine.legrad.legrad`).

    Returns:
        Heatmaps `[B, P, h, w]`, float32 (float64 for a float64 model); with `per_layer` `[B, P, L, gh, gw]`.

    Raises:
        InputError: a wrong argument: an unknown method, pooling, layer or option, pixels of the wrong dtype or shape, a
            correction that the model or the method does not have, or weights that are not finite.
        PromptError: prompts of the wrong dtype or shape.
    """
    prepared = prepare(model, pixels, method, layers, pooling, keep=False, **options)
    view = prepared.view
    prompts = check_prompts(view, prompts, len(pixels))
    if per_layer:
        if correction not in ("default", None, 0):
            raise InputError("correction needs maps that are summed over layers; leave it out with per_layer=True")
        return _maps(prepared, prompts)[0]
    threshold = resolve_correction(correction, view, method)
    maps, _ = _maps(prepared, prompts if threshold is None else with_empty_prompt(view, prompts))
    return finish(view, maps.sum(2), (pixels.shape[-2], pixels.shape[-1]), threshold, normalize)
