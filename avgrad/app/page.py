"""The page that streamlit runs, once for each visitor and each of their actions."""

from __future__ import annotations

import time
from html import escape

import streamlit as st

from avgrad.app import style
from avgrad.app.details import show_details
from avgrad.app.heatmaps import jpeg, show_heatmaps
from avgrad.app.image import choose_image
from avgrad.app.model_pool import BUNDLED
from avgrad.app.prompts import choose_questions, show_cards
from avgrad.app.session import Answer, Session, message
from avgrad.app.sidebar import choose_model, the_model_pool
from avgrad.app.video import show_video
from avgrad.errors import InputError

_HEAD = """<h1 class="title">Where in this image is what I hear?</h1>
<p class="lead">Pick a scene or use an image of your own, then play, record, say or write what to look for. The heatmap
is the model's answer.</p>"""

_MODES = ("Image", "Video")


def show() -> None:
    """The whole page."""
    started = time.perf_counter()
    st.set_page_config("avgrad: where is the sound?", style.icon(), "wide", "collapsed")
    style.apply()
    session: Session = st.session_state.setdefault("session", Session(the_model_pool()))
    with st.sidebar:
        model = choose_model(session)
    which = "the small bundled one, for drawings like the samples" if model.name == BUNDLED else "chosen in the sidebar"
    st.html(f'{_HEAD}<p class="faint model">Model: <b>{escape(model.name)}</b>, {which}.</p>')
    mode = st.segmented_control(
        "What to look at", _MODES, default=_MODES[0], required=True, label_visibility="collapsed", key="mode"
    )
    if mode == "Video":
        show_video(session.model_pool, model)
        return
    choose_image(session)
    assert session.image is not None  # a sample at least
    left, right = st.columns([6, 5], gap="large")
    with right:
        st.header("What to look for", anchor=False)
        asked = choose_questions(session.image, model)
        questions = []
        for question in asked:
            try:
                if question.modality != "text":
                    session.sound(question)
                questions.append(question)
            except InputError as error:
                _show_error(message(error, question.label))
        with left, st.spinner("Looking …"):
            answer, refused = session.localize(session.image, questions)
        for words in refused:
            _show_error(words)
        if answer is not None:
            show_cards(session, answer)
    with left:
        if session.image.sample is None and model.name == BUNDLED:
            st.info(
                "The bundled model knows only drawings like the samples: on other images its heatmaps and scores mean "
                "nothing. For photographs choose another model in the sidebar."
            )
        if answer is not None:
            _show_answer(session, answer, started)
        else:
            with st.container(key="heatmap"):
                st.image(jpeg(session.image.image), width="stretch", alt="The image")
            if not asked:
                st.info("Nothing to look for yet: choose a sound, record one, or write some words.")


@st.fragment
def _show_answer(session: Session, answer: Answer, started: float) -> None:
    """The heatmaps and their details; their controls rerun this part of the page only."""
    if st.session_state.get("shown") is answer:  # only a control here was moved
        started = time.perf_counter()
    st.session_state["shown"] = answer
    show_details(session, answer, show_heatmaps(answer, started))


def _show_error(words: str) -> None:
    st.error(style.plain(words), icon=":material/error:")


if __name__ == "__main__":
    show()
