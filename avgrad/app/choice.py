"""Choice of one prompt among several."""

from __future__ import annotations

import streamlit as st

from avgrad.app.session import Answer


def choose_prompt(answer: Answer, key: str) -> int:
    """Which prompt is looked at; with a single one there is nothing to choose."""
    questions = answer.questions
    if len(questions) == 1:
        return 0
    numbers = list(range(len(questions)))
    chosen = st.selectbox(
        "Prompt", numbers, format_func=lambda number: f"{number + 1}: {questions[number].label}", key=key
    )
    return chosen or 0
