"""A card for each prompt: what it is, what its score means, and what a sound sounds and looks like."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import streamlit as st

from avgrad.app.question import COLOURS, Question
from avgrad.app.session import Answer, Session
from avgrad.app.spectrogram import MAX_SECONDS, Spectrogram
from avgrad.app.style import css
from avgrad.app.verdict import Verdict, verdicts

_KINDS = {"audio": "sound", "speech": "spoken", "text": "text"}
_NEAREST = '<p class="faint">The warm places are only what is nearest to it.</p>'
_FAINT = " <small>(faint: probably not here)</small>"


def show_cards(session: Session, answer: Answer) -> None:
    """The cards of all prompts."""
    scores = answer.result.scores.tolist()
    together = len(answer.questions) > 1
    for number, (question, verdict, score) in enumerate(
        zip(answer.questions, verdicts(answer.result), scores, strict=True)
    ):
        with st.container(border=True, key=f"card_{number}"):
            st.html(_heading(question, verdict, score, css(COLOURS[number]) if together else None))
            if question.modality != "text":
                _sound(question, session.sound(question))


def legend(answer: Answer, absent: Sequence[bool]) -> str:
    """Which prompt has which colour, as HTML.

    Args:
        answer: what was found.
        absent: for each prompt whether it is probably not in the image.
    """
    items = (
        f'<li><i style="--thing: {css(colour)}"></i>{escape(question.label)}{_FAINT if missing else ""}</li>'
        for question, colour, missing in zip(answer.questions, COLOURS, absent, strict=False)
    )
    return f'<ul class="legend" aria-label="Colours of the prompts">{"".join(items)}</ul>'


def _heading(question: Question, verdict: Verdict, score: float, colour: str | None) -> str:
    dot = f'<i style="--thing: {colour}"></i>' if colour else ""
    figures = f"score {score:.3f}"
    if verdict.probability is not None:
        figures += f" · {100 * verdict.probability:.0f} % sure"
    return (
        f'<div class="asked">{dot}<b>{escape(question.label)}</b><small>{_KINDS[question.modality]}</small></div>'
        f'<div class="verdict"><span class="{"no" if verdict.absent else "yes"}">{escape(verdict.words)}</span>'
        f"<small>{figures}</small></div>{_NEAREST if verdict.absent else ''}"
    )


def _sound(question: Question, image: Spectrogram) -> None:
    st.audio(question.content, format=question.mime, alt=f"Player of {question.label}")
    spans = ", ".join(f"{begin:.1f} to {end:.1f} s" for begin, end in dict.fromkeys(image.clips))
    what = "The clips of" if image.duration > MAX_SECONDS else "Waveform and log-mel spectrogram of"
    st.image(
        image.png,
        width="stretch",
        alt=f"{what} {question.label}; the model hears {spans}",
    )
    st.caption(f"{image.duration:.1f} s. Bars: the clips that the model hears ({spans}).")
