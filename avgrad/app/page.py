"""The page that streamlit runs, once for each visitor and each thing that a visitor does."""

from __future__ import annotations

import time

import streamlit as st

from avgrad.app import style
from avgrad.app.model_input import choose_model
from avgrad.app.overlays import jpeg
from avgrad.app.picture_input import choose_picture
from avgrad.app.prompt_cards import show_cards
from avgrad.app.prompt_input import choose_questions
from avgrad.app.results import show_results
from avgrad.app.visitor import MISTAKES, Visitor, sentence
from avgrad.app.workshop import BUNDLED, the_workshop

_HEAD = """<h1 class="title">Where in this picture is the thing that I hear?</h1>
<p class="lead">Pick a scene or give a picture of your own, then play, record, say or write what to look for. The warm
places are the model's answer.</p>"""


def show() -> None:
    """The whole page."""
    started = time.perf_counter()
    st.set_page_config("avgrad: where is the sound?", style.icon(), "wide", "collapsed")
    style.apply()
    visitor: Visitor = st.session_state.setdefault("visitor", Visitor(the_workshop()))
    with st.sidebar:
        model = choose_model(visitor)
    st.html(_HEAD)
    choose_picture(visitor)
    assert visitor.picture is not None  # a sample at least
    left, right = st.columns([6, 5], gap="large")
    with right:
        st.header("What to look for", anchor=False)
        asked = choose_questions(visitor.picture)
        questions = []
        for question in asked:
            try:
                if question.modality != "text":
                    visitor.sound(question)
                questions.append(question)
            except MISTAKES as error:
                _refuse(sentence(error, question.label))
        with left, st.spinner("Looking …"):
            answer, refused = visitor.look(visitor.picture, questions)
        for words in refused:
            _refuse(words)
        if answer is not None:
            show_cards(visitor, answer)
    with left:
        if visitor.picture.sample is None and model.name == BUNDLED:
            st.info(
                "The bundled model knows only drawings like the samples: on other pictures its answers mean nothing. "
                "For the real world choose another model in the sidebar."
            )
        if answer is not None:
            show_results(visitor, answer, started)
        else:
            with st.container(key="heatmap"):
                st.image(jpeg(visitor.picture.image), width="stretch", alt="The picture")
            if not asked:
                st.info("Nothing is looked for yet: choose a sound, record one, or write some words.")


def _refuse(words: str) -> None:
    st.error(style.plain(words), icon=":material/error:")


if __name__ == "__main__":
    show()
