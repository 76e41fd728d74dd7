"""Methods: what LeGrad's baselines make of the same model, image and prompt."""

from __future__ import annotations

import streamlit as st

from avgrad.app.choice import choose_prompt
from avgrad.app.overlays import Display, fitted, jpeg, overlay
from avgrad.app.session import MISTAKES, Answer, Session
from avgrad.app.style import plain
from avgrad.engine.methods import list_methods

_FIRST = ("legrad", "grad_eclip", "gradcam", "raw_attention")
_SIDE = 400  # of images on the screen, in pixels


def show_methods(session: Session, answer: Answer, display: Display) -> None:
    """Overlays of several methods side by side; each is computed when it is chosen."""
    index = choose_prompt(answer, "methods_prompt")
    methods = st.pills(
        "Methods", list_methods(), selection_mode="multi", default=_FIRST, format_func=_words, key="methods"
    )
    columns = st.columns(2, wrap=False)
    for number, method in enumerate(methods):
        with columns[number % 2]:
            try:
                with st.spinner(f"{method} …"):
                    result = session.baseline(answer, index, method)
            except (*MISTAKES, ValueError) as error:
                st.error(plain(f"{method}: {error}"))
                continue
            image = jpeg(overlay(fitted(result, _SIDE), 0, display))
            st.image(image, _words(method), width="stretch", alt=f"Heatmap by the method {method}")


def _words(method: str) -> str:
    return method.replace("_", " ")
