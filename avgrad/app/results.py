"""Results: the heatmaps, and controls that answer without computing the model again."""

from __future__ import annotations

import time
from html import escape

import streamlit as st

from avgrad.app.downloads import show_downloads
from avgrad.app.layers import show_layers
from avgrad.app.methods import show_methods
from avgrad.app.overlays import COLORMAPS, Display, fitted, has_layers, jpeg, layer_alone, overlay, together
from avgrad.app.prompt_cards import legend
from avgrad.app.question import COLOURS
from avgrad.app.session import Answer, Session
from avgrad.app.verdict import verdicts
from avgrad.localization import Localization

_ALL = "all"
_DEEPER = ("Layers", "Methods", "Save")
_SIDE, _SMALL_SIDE = 640, 400  # of images on the screen, in pixels


@st.fragment
def show_results(session: Session, answer: Answer, started: float) -> None:
    """The heatmaps of an answer with their controls, what lies behind them, and downloads.

    Args:
        visitor: whose they are.
        answer: what was found.
        started: when the answer was asked for, by `time.perf_counter`.
    """
    if st.session_state.get("shown") is answer:  # only a control here was moved
        started = time.perf_counter()
    st.session_state["shown"] = answer
    main, controls, others = st.container(key="heatmap"), st.container(key="controls"), st.container()
    with controls:
        display, layer = _controls(answer)
    result = answer.result if layer is None else layer_alone(answer.result, layer, answer.localizer.model.vision)
    with main:
        _show_first(answer, result, display)
    if len(answer.questions) > 1:
        with others:
            _show_each(answer, result, display)
    seconds = time.perf_counter() - started
    main.html(f'<p class="faint">{escape(result.model)} answered in {seconds:.2f} s.</p>')
    deeper = st.segmented_control("Look deeper", _DEEPER, key="deeper")
    if deeper == "Layers":
        show_layers(answer, display)
    elif deeper == "Methods":
        show_methods(session, answer, display)
    elif deeper == "Save":
        show_downloads(answer, result, display, layer)


def _controls(answer: Answer) -> tuple[Display, int | None]:
    """How the heatmaps are to be shown, and of which layer alone."""
    first, second = st.columns(2, gap="medium", wrap=False)
    with first:
        opacity = st.slider("Opacity", 0.0, 1.0, 0.75, 0.05, key="opacity")
        colormap = st.selectbox("Colour map", COLORMAPS, key="colormap")
    with second:
        threshold = st.slider(
            "Mask from", 0.05, 1.0, 0.5, 0.05, key="threshold", help="What is at least as warm belongs to the mask."
        )
        outlined = st.toggle("Outline of the mask", True, key="outlined")
    chosen = _ALL
    if has_layers(answer.result):
        layers = [_ALL, *(str(layer) for layer in answer.result.layers)]
        # the key belongs to the model, whose layers these are
        chosen = st.select_slider("Layer", layers, _ALL, key=f"layer_{answer.result.model}")
    return Display(opacity, colormap or COLORMAPS[0], threshold, outlined), None if chosen == _ALL else int(chosen)


def _show_first(answer: Answer, result: Localization, display: Display) -> None:
    """The heatmap of the only prompt, or of all of them together."""
    large = fitted(result, _SIDE)
    if len(answer.questions) == 1:
        st.image(jpeg(overlay(large, 0, display)), width="stretch", alt=_alt(result, 0))
        return
    absent = [verdict.absent for verdict in verdicts(answer.result)]
    labels = ", ".join(question.label for question in answer.questions)
    st.image(
        jpeg(together(large, COLOURS, display, absent)),
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
