"""The sidebar: which model localizes."""

from __future__ import annotations

import re

import streamlit as st

from avgrad.app.model_pool import BUNDLED, ModelPool
from avgrad.app.session import Session
from avgrad.app.style import plain
from avgrad.errors import InputError
from avgrad.models.checkpoints import checkpoint_path
from avgrad.models.model import Model
from avgrad.models.pe_av_files import NAMES, cached_folder

_HUGE = "imagebind_huge"
PE_AV = "PE-AV"
_CLIP = "CLIP of open_clip"
_NOTES = {
    BUNDLED: "Small and bundled; takes sounds, speech and texts. It was trained on synthetic scenes like the samples, "
    "not on photographs.",
    _HUGE: "For photographs; takes sounds, speech and texts. Its weights are CC-BY-NC 4.0: not for commercial use.",
    PE_AV: "For photographs; takes sounds, speech (it understands the words) and texts. Its weights are Apache-2.0.",
    _CLIP: "For photographs; takes texts only.",
}
_SUGGESTED = (
    "ViT-B-32/laion2b_s34b_b79k",
    "ViT-B-16/laion2b_s34b_b88k",
    "ViT-L-14/laion2b_s32b_b82k",
    "ViT-B-16-SigLIP/webli",
)
# names only: the loader also takes paths of checkpoints, which visitors must not reach
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@st.cache_resource(show_spinner=False)
def the_model_pool() -> ModelPool:
    """The server's only model pool."""
    return ModelPool()


def choose_model(session: Session) -> Model:
    """Shows the choice of models, and sets the session's: the chosen one, or the bundled one if that cannot be had."""
    st.header("Model", anchor=False)
    choice = st.radio("Model", (BUNDLED, _HUGE, PE_AV, _CLIP), key="model", label_visibility="collapsed")
    st.caption(_NOTES[choice])
    name: str | None = choice
    missing: str | None = None
    if choice == _HUGE and not checkpoint_path(_HUGE).exists():
        missing, name = _HUGE, None
    if choice == PE_AV:
        name = installed_pe_av()
        missing = "pe-av-base" if name is None else None
    if missing is not None:
        st.info("Its checkpoint is not on this server. This command downloads it:")
        st.code(f"avgrad download {missing}", "sh", wrap_lines=True)
    if choice == _CLIP:
        name = _clip()
    if name is not None:
        try:
            with st.spinner(f"Loading {plain(name)} …"):
                return session.model(name)
        except InputError as error:
            st.error(plain(str(error)))
            st.session_state.pop("clip_loaded", None)  # or each rerun would try again
    if choice != BUNDLED:
        st.caption(f"Until then, {BUNDLED} is used.")
    return session.model(BUNDLED)


def installed_pe_av() -> str | None:
    """The first of the PE-AV models that is on this server; None for none."""
    return next((name for name in NAMES if cached_folder(name) is not None), None)


def _clip() -> str | None:
    """The name of a CLIP model, once the visitor has asked to load it."""
    chosen = st.selectbox(
        "Architecture/weights", _SUGGESTED, accept_new_options=True, key="clip", help="Names as in open_clip."
    )
    if st.button("Load", key="load_clip", help="Weights that are not on this server are downloaded first."):
        st.session_state["clip_loaded"] = chosen
    if chosen is None or st.session_state.get("clip_loaded") != chosen:
        return None
    if not _NAME.fullmatch(chosen):
        st.error("A name such as ViT-B-16/laion2b\\_s34b\\_b88k is expected.")
        return None
    return f"open_clip:{chosen}"
