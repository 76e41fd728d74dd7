"""Which model looks."""

from __future__ import annotations

import re

import streamlit as st

from avgrad.app.model_pool import BUNDLED
from avgrad.app.session import MISTAKES, Session
from avgrad.app.style import plain
from avgrad.models.checkpoints import checkpoint_path
from avgrad.models.model import Model

_HUGE = "imagebind_huge"
_CLIP = "CLIP of open_clip"
_NOTES = {
    BUNDLED: "The small bundled model. It hears and reads, and knows synthetic scenes like the samples, not the world.",
    _HUGE: "Knows the real world. Its weights are CC-BY-NC 4.0: not for commercial use.",
    _CLIP: "Models that read texts; they do not hear.",
}
_KNOWN = (
    "ViT-B-32/laion2b_s34b_b79k",
    "ViT-B-16/laion2b_s34b_b88k",
    "ViT-L-14/laion2b_s32b_b82k",
    "ViT-B-16-SigLIP/webli",
)
# names alone: what looks like a path must not reach a loader that also takes files
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def choose_model(session: Session) -> Model:
    """Shows the choice of models, and returns the chosen one; the bundled one where that cannot be had."""
    st.header("Model", anchor=False)
    kind = st.radio("Model", (BUNDLED, _HUGE, _CLIP), key="model", label_visibility="collapsed")
    st.caption(_NOTES[kind])
    name: str | None = kind
    if kind == _HUGE and not checkpoint_path(_HUGE).exists():
        st.info("Its checkpoint is not here. This command gets it:")
        st.code(f"avgrad download {_HUGE}", "sh", wrap_lines=True)
        name = None
    if kind == _CLIP:
        name = _clip()
    if name is not None:
        try:
            with st.spinner(f"Loading {plain(name)} …"):
                return session.model(name)
        except MISTAKES as error:
            st.error(plain(str(error)))
            st.session_state.pop("clip_loaded", None)  # or it would be tried again with every click
    if kind != BUNDLED:
        st.caption(f"Until then {BUNDLED} goes on looking.")
    return session.model(BUNDLED)


def _clip() -> str | None:
    """The name of a CLIP model, once the visitor said that it may be fetched."""
    chosen = st.selectbox(
        "Architecture/weights", _KNOWN, accept_new_options=True, key="clip", help="As open_clip names them."
    )
    if st.button("Load", key="load_clip", help="Weights that are not here are fetched, which takes a while."):
        st.session_state["clip_loaded"] = chosen
    if chosen is None or st.session_state.get("clip_loaded") != chosen:
        return None
    if not _NAME.fullmatch(chosen):
        st.error("A name such as ViT-B-16/laion2b\\_s34b\\_b88k is expected.")
        return None
    return f"open_clip:{chosen}"
