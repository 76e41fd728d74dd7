"""Details of an answer: each layer's map, other methods, and downloads with the Python code of the same result."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import streamlit as st
from PIL import Image

from avgrad.app.heatmaps import Display, Shown, fitted, has_layers, jpeg, layer_alone, overlay
from avgrad.app.prompts import choose_prompt
from avgrad.app.session import MAX_SIDE, Answer, Session
from avgrad.app.style import plain
from avgrad.engine.methods import list_methods
from avgrad.errors import InputError
from avgrad.localization import Localization, file_words

_CHOICES = ("Layers", "Methods", "Save")
_LAYER_SIDE, _METHOD_SIDE = 240, 400  # of images on the screen, in pixels
_FIRST_METHODS = ("legrad", "grad_eclip", "gradcam", "raw_attention")


def show_details(session: Session, answer: Answer, shown: Shown) -> None:
    """The choice of details, and what was chosen.

    Args:
        session: the visitor's.
        answer: what was found.
        shown: what is on the screen of it.
    """
    chosen = st.segmented_control("Details", _CHOICES, key="details")
    if chosen == "Layers":
        _show_layers(answer, shown.display)
    elif chosen == "Methods":
        _show_methods(session, answer, shown.display)
    elif chosen == "Save":
        _show_downloads(answer, shown)


def _show_layers(answer: Answer, display: Display) -> None:
    """A grid of one prompt's maps, one for each layer."""
    result = answer.result
    if not has_layers(result):
        st.caption("This model has a single layer.")
        return
    index = choose_prompt(answer, "layers_prompt")
    st.caption("Each map is min-max normalized by itself: a layer that adds almost nothing looks as hot as any other.")
    with st.container(horizontal=True, key="layer_grid"):
        for layer in result.layers:
            alone = layer_alone(result, layer)
            image = fitted(alone, _LAYER_SIDE).overlay(index, display.opacity, display.colormap)
            st.image(jpeg(image), f"layer {layer}", width=150, alt=f"Heatmap of layer {layer} alone")


def _show_methods(session: Session, answer: Answer, display: Display) -> None:
    """Overlays of several methods side by side; each is computed when it is chosen."""
    index = choose_prompt(answer, "methods_prompt")
    methods = st.pills(
        "Methods", list_methods(), selection_mode="multi", default=_FIRST_METHODS, format_func=_words, key="methods"
    )
    columns = st.columns(2, wrap=False)
    for number, method in enumerate(methods):
        with columns[number % 2]:
            try:
                with st.spinner(f"{_words(method)} …"):
                    result = session.compare(answer, index, method)
            except InputError as error:
                st.error(plain(f"{method}: {error}"))
                continue
            image = jpeg(overlay(fitted(result, _METHOD_SIDE), 0, display))
            st.image(image, _words(method), width="stretch", alt=f"Heatmap by the method {method}")


def _words(method: str) -> str:
    return method.replace("_", " ")


# ------------------------------------------------------------------ downloads


def _show_downloads(answer: Answer, shown: Shown) -> None:
    """Download buttons for what is on the screen, and the Python code that gives it."""
    result, display = shown.result, shown.display
    index = choose_prompt(answer, "downloads_prompt")
    words = file_words(answer.questions[index].label) or "prompt"
    files: list[tuple[str, str, str, Callable[[], bytes] | bytes]] = [
        (
            "Overlay (PNG)",
            f"overlay_{words}.png",
            "image/png",
            lambda: _png(result.overlay(index, display.opacity, display.colormap)),
        ),
        ("Mask (PNG)", f"mask_{words}.png", "image/png", lambda: _png(mask_image(result, index, display.threshold))),
        ("Heatmaps (NPZ)", "heatmaps.npz", "application/octet-stream", partial(_npz, result)),
        ("Scores (JSON)", "result.json", "application/json", partial(result.to_json, threshold=display.threshold)),
    ]
    if answer.image.photo is not None:
        files.append(("Your photo", answer.image.name, "image/jpeg", answer.image.photo))
    for question in answer.questions:
        if question.recorded:
            what = "sound" if question.modality == "audio" else "words"
            name = f"{question.label.replace(' ', '_')}.wav"
            files.append((f"Your {what} (WAV)", name, question.mime, question.content))
    code = python_code(answer, display, shown.layer)
    files.append(("Python code", "localize.py", "text/x-python", code.encode()))
    with st.container(horizontal=True, key="downloads"):
        for label, name, mime, content in files:
            st.download_button(
                label, content, name, mime, key=f"download_{label}", on_click="ignore", icon=":material/download:"
            )
    st.caption("This code gives the same result; your own files must be in its folder.")
    st.code(code, "python", wrap_lines=True)


def mask_image(result: Localization, index: int, threshold: float) -> Image.Image:
    """A mask in black and white (0 and 255), of the image's size."""
    return Image.fromarray(result.mask(threshold)[index].numpy().astype(np.uint8) * 255)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _npz(result: Localization) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **result.arrays(heatmaps=True))
    return stream.getvalue()


def python_code(answer: Answer, display: Display, layer: int | None = None) -> str:
    """A program that gives the same result.

    Args:
        answer: what was found.
        display: how it is shown.
        layer: the only layer that is shown; None for all.
    """
    image, questions = answer.image, answer.questions
    sources = [image.source, *(question.source for question in questions)]
    lines = ["import avgrad"]
    if image.shrunk:
        lines.append("from avgrad.media import load_image")
    if any(source.startswith("samples()") for source in sources):
        lines.append("from avgrad.scenes.samples import samples")
    options = [repr(answer.result.model)]
    if answer.result.dtype != "float32":
        options.append(f"dtype={answer.result.dtype!r}")
    if layer is not None:
        options.append(f"layers=[{layer}]")
        if answer.localizer.settings.correction is not None:
            options.append("correction=None")
    lines += ["", f"localizer = avgrad.Localizer({', '.join(options)})"]
    if image.shrunk:
        lines += [
            f"image = load_image({image.source})",
            f"image.thumbnail(({MAX_SIDE}, {MAX_SIDE}))",
            "localizer.set_image(image)",
        ]
    else:
        lines.append(f"localizer.set_image({image.source})")
    lines.append("result = localizer.localize(")
    for modality in ("audio", "speech", "text"):
        given = [question.source for question in questions if question.modality == modality]
        if given:
            lines.append(f"    {modality}=[{', '.join(given)}],")
    lines += [
        ")",
        'result.save("out/", heatmaps=True)',
        f'result.overlay(0, opacity={display.opacity}, colormap="{display.colormap}").save("overlay.png")',
        f"mask = result.mask({display.threshold})  # bool [P, H, W]",
    ]
    return "\n".join(lines) + "\n"
