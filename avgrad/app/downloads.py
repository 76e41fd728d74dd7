"""Downloads: the result as files, and the Python lines that give it again."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import streamlit as st

from avgrad.app.choice import choose_prompt
from avgrad.app.overlays import Display, mask_image, png
from avgrad.app.recipe import recipe
from avgrad.app.session import Answer
from avgrad.localization import Localization, file_words


def show_downloads(answer: Answer, result: Localization, display: Display, layer: int | None) -> None:
    """Buttons that save what is shown.

    Args:
        answer: what was found.
        result: what is shown of it.
        display: how it is shown.
        layer: the only layer that is shown; None for all.
    """
    index = choose_prompt(answer, "downloads_prompt")
    words = file_words(answer.questions[index].label) or "prompt"
    files: list[tuple[str, str, str, Callable[[], bytes]]] = [
        (
            "Overlay (PNG)",
            f"overlay_{words}.png",
            "image/png",
            lambda: png(result.overlay(index, display.opacity, display.colormap)),
        ),
        ("Mask (PNG)", f"mask_{words}.png", "image/png", lambda: png(mask_image(result, index, display.threshold))),
        ("Heatmaps (NPZ)", "heatmaps.npz", "application/octet-stream", partial(_npz, result)),
        ("Scores (JSON)", "result.json", "application/json", partial(result.to_json, threshold=display.threshold)),
    ]
    if answer.image.photo is not None:
        photo = answer.image.photo
        files.append(("Your photo", answer.image.name, "image/jpeg", lambda: photo))
    code = recipe(answer, display, layer)
    with st.container(horizontal=True, key="downloads"):
        for label, name, mime, make in files:
            st.download_button(
                label, make, name, mime, key=f"download_{label}", on_click="ignore", icon=":material/download:"
            )
        for question in answer.questions:
            if question.recorded:
                st.download_button(
                    f"Your {'sound' if question.modality == 'audio' else 'words'} (WAV)",
                    question.content,
                    f"{question.label.replace(' ', '_')}.wav",
                    question.mime,
                    key=f"download_{question.modality}",
                    on_click="ignore",
                    icon=":material/download:",
                )
        st.download_button(
            "Python lines",
            code,
            "localize.py",
            "text/x-python",
            key="download_code",
            on_click="ignore",
            icon=":material/download:",
        )
    st.caption("These lines give the same result; files of yours must lie beside them.")
    st.code(code, "python", wrap_lines=True)


def _npz(result: Localization) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **result.arrays())
    return stream.getvalue()
