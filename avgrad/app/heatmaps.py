"""The heatmaps of an answer, and the controls that show them otherwise without running the model again."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np
import streamlit as st
from PIL import Image

from avgrad.app.prompts import legend, verdicts
from avgrad.app.session import Answer
from avgrad.drawing import PALETTE, Colour, draw_outline
from avgrad.localization import Localization

COLORMAPS = ("turbo", "viridis", "inferno", "cividis", "coolwarm", "gray")
_WHITE: Colour = (255, 255, 255)
_ALL = "all"
_SIDE, _SMALL_SIDE = 640, 400  # of images on the screen, in pixels

# ------------------------------------------------------------------ images of heatmaps


@dataclass(frozen=True)
class Display:
    """How heatmaps are shown.

    Attributes:
        opacity: of the hottest pixel, in [0, 1].
        colormap: a name that matplotlib knows.
        threshold: of the mask, in [0, 1].
        outlined: whether the mask's outline is drawn.
    """

    opacity: float = 0.75
    colormap: str = "turbo"
    threshold: float = 0.5
    outlined: bool = True


def has_layers(result: Localization) -> bool:
    """Whether there is a map for each layer; some methods explain one layer, or multiply the layers' maps."""
    return result.layer_maps.shape[1] == len(result.layers) > 1


def layer_alone(result: Localization, layer: int) -> Localization:
    """What `Localizer(..., layers=[layer])` gives, from the layer maps of a result and without the model."""
    maps = result.layer_maps[:, [result.layers.index(layer)]]
    return replace(result, maps=maps[:, 0], layers=[layer], layer_maps=maps)


def fitted(result: Localization, side: int) -> Localization:
    """The result resized for the screen, its longer side `side` pixels."""
    scale = side / max(result.image.size)
    width, height = (max(1, round(length * scale)) for length in result.image.size)
    return replace(result, image=result.image.resize((width, height), Image.Resampling.BICUBIC))


def overlay(result: Localization, index: int, display: Display) -> Image.Image:
    """The image with one prompt's heatmap, and the outline of its mask."""
    image = result.overlay(index, display.opacity, display.colormap)
    if not display.outlined:
        return image
    return draw_outline(image, result.heatmaps[index].numpy() >= display.threshold, _WHITE, _thickness(image))


def together(result: Localization, colours: Sequence[Colour], display: Display, absent: Sequence[bool]) -> Image.Image:
    """The image with all prompts' heatmaps, each in its own colour.

    Args:
        result: of P prompts.
        colours: at least P.
        display: its opacity, threshold and outline are used.
        absent: for each prompt whether it is probably not in the image: it is shown faintly, without an outline.
    """
    heat = result.heatmaps.numpy()
    strength = np.where(absent, 0.3, 1).astype(np.float32)[:, None, None]
    weights = strength * np.clip((heat - 0.25) / 0.75, 0, 1)
    palette = np.array(colours[: len(heat)], dtype=np.float32)
    shares = weights * weights * weights  # where several are hot, the hottest dominates
    mixed = np.tensordot(shares, palette, axes=(0, 0)) / np.maximum(shares.sum(0), 1e-9)[..., None]
    alpha = display.opacity * np.sqrt(weights.max(0))[..., None]
    # colours are told apart more easily on a paler image
    grey = result.image.convert("L").convert("RGB")
    base = np.asarray(Image.blend(result.image, grey, 0.65), dtype=np.float32)
    base += alpha * (mixed - base)
    image = Image.fromarray(np.rint(base).astype(np.uint8))
    if display.outlined:
        for one, colour, missing in zip(heat, colours, absent, strict=False):
            if not missing:
                image = draw_outline(image, one >= display.threshold, colour, _thickness(image))
    return image


def _thickness(image: Image.Image) -> int:
    """Of outlines, for the image's size."""
    return max(1, round(max(image.size) / 350))


def jpeg(image: Image.Image) -> bytes:
    """A JPEG file, as the page sends images to the browser."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()


# ------------------------------------------------------------------ the area of the screen


@dataclass(frozen=True, eq=False)
class Shown:
    """What is on the screen of an answer.

    Attributes:
        result: the heatmaps.
        display: how they are shown.
        layer: the only layer that is shown; None for all.
    """

    result: Localization
    display: Display
    layer: int | None


def show_heatmaps(answer: Answer, started: float) -> Shown:
    """The heatmaps of an answer with their controls.

    Args:
        answer: what was found.
        started: when the answer was asked for, by `time.perf_counter`.
    """
    main, controls, others = st.container(key="heatmap"), st.container(key="controls"), st.container()
    with controls:
        display, layer = _controls(answer)
    result = answer.result if layer is None else layer_alone(answer.result, layer)
    with main:
        _show_first(answer, result, display)
    if len(answer.questions) > 1:
        with others:
            _show_each(answer, result, display)
    seconds = time.perf_counter() - started
    main.html(f'<p class="faint">{escape(result.model)} answered in {seconds:.2f} s.</p>')
    return Shown(result, display, layer)


def _controls(answer: Answer) -> tuple[Display, int | None]:
    """How the heatmaps are shown, and of which layer alone."""
    first, second = st.columns(2, gap="medium", wrap=False)
    with first:
        opacity = st.slider("Opacity", 0.0, 1.0, 0.75, 0.05, key="opacity")
        colormap = st.selectbox("Colour map", COLORMAPS, key="colormap")
    with second:
        threshold = st.slider(
            "Mask from", 0.05, 1.0, 0.5, 0.05, key="threshold", help="The mask is where the heatmap reaches this value."
        )
        outlined = st.toggle("Outline of the mask", True, key="outlined")
    chosen = _ALL
    if has_layers(answer.result):
        layers = [_ALL, *(str(layer) for layer in answer.result.layers)]
        # keyed by the model, whose layers these are
        chosen = st.select_slider("Layer", layers, _ALL, key=f"layer_{answer.result.model}")
    return Display(opacity, colormap or COLORMAPS[0], threshold, outlined), None if chosen == _ALL else int(chosen)


def _show_first(answer: Answer, result: Localization, display: Display) -> None:
    """The heatmap of the only prompt, or of all of them together."""
    large = fitted(result, _SIDE)
    if len(answer.questions) == 1:
        st.image(jpeg(overlay(large, 0, display)), width="stretch", alt=_alt(result, 0))
        return
    absent = [verdict.absent for verdict in verdicts(answer)]
    labels = ", ".join(question.label for question in answer.questions)
    st.image(
        jpeg(together(large, PALETTE, display, absent)),
        width="stretch",
        alt=f"All heatmaps together, in colours: {labels}",
    )
    st.html(legend(answer, absent))


def _show_each(answer: Answer, result: Localization, display: Display) -> None:
    """The heatmap of each prompt by itself."""
    small, columns = fitted(result, _SMALL_SIDE), st.columns(2, wrap=False)
    for number, question in enumerate(answer.questions):
        with columns[number % 2]:
            st.html(f'<p class="faint">{escape(question.label)}</p>')
            st.image(jpeg(overlay(small, number, display)), width="stretch", alt=_alt(result, number))


def _alt(result: Localization, index: int) -> str:
    column, row = result.peak(index)
    width, height = result.image.size
    across = ("left", "middle", "right")[min(2, 3 * column // width)]
    down = ("top", "centre", "bottom")[min(2, 3 * row // height)]
    return f"Heatmap of {result.prompts[index].label}, hottest at the {down} {across}"
