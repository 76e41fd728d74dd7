"""The page that streamlit runs, once for each visitor and each thing that a visitor does."""

from __future__ import annotations

import time

import streamlit as st

from avgrad.app import style
from avgrad.app.image_input import choose_image
from avgrad.app.model_input import choose_model
from avgrad.app.model_pool import BUNDLED, the_model_pool
from avgrad.app.overlays import jpeg
from avgrad.app.prompt_cards import show_cards
from avgrad.app.prompt_input import choose_questions
from avgrad.app.results import show_results
from avgrad.app.session import MISTAKES, Session, sentence

_HEAD = """<h1 class="title">Where in this image is the thing that I hear?</h1>
<p class="lead">Pick a scene or give an image of your own, then play, record, say or write what to look for. The warm
places are the model's answer.</p>"""


def show() -> None:
    """The whole page."""
    started = time.perf_counter()
    st.set_page_config("avgrad: where is the sound?", style.icon(), "wide", "collapsed")
    style.apply()
    session: Session = st.session_state.setdefault("visitor", Session(the_model_pool()))
    with st.sidebar:
        model = choose_model(session)
    st.html(_HEAD)
    choose_image(session)
    assert session.image is not None  # a sample at least
    left, right = st.columns([6, 5], gap="large")
    with right:
        st.header("What to look for", anchor=False)
        asked = choose_questions(session.image)
        questions = []
        for question in asked:
            try:
                if question.modality != "text":
                    session.sound(question)
                questions.append(question)
            except MISTAKES as error:
                _refuse(sentence(error, question.label))
        with left, st.spinner("Looking …"):
            answer, refused = session.look(session.image, questions)
        for words in refused:
            _refuse(words)
        if answer is not None:
            show_cards(session, answer)
    with left:
        if session.image.sample is None and model.name == BUNDLED:
            st.info(
                "The bundled model knows only drawings like the samples: on other images its answers mean nothing. "
                "For the real world choose another model in the sidebar."
            )
        if answer is not None:
            show_results(session, answer, started)
        else:
            with st.container(key="heatmap"):
                st.image(jpeg(session.image.image), width="stretch", alt="The image")
            if not asked:
                st.info("Nothing is looked for yet: choose a sound, record one, or write some words.")


def _refuse(words: str) -> None:
    st.error(style.plain(words), icon=":material/error:")


if __name__ == "__main__":
    show()
