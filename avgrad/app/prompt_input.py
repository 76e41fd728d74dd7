"""What the visitor looks for: sample sounds, the microphone, files and texts, all of them at once."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from functools import cache
from typing import Literal

import streamlit as st

from avgrad.app.picture import Picture
from avgrad.app.question import MAX_QUESTIONS, Question
from avgrad.scenes.samples import SampleThing, samples

_SOUNDS = ("wav", "mp3", "ogg", "oga", "opus", "flac", "m4a", "aac", "webm", "aif", "aiff", "mp4", "mov")
_FORMS = {"audio": "Sound", "speech": "Spoken words", "text": "Text"}
_ORDER = ("audio", "speech", "text")  # of prompts in a Localization


def choose_kinds(kinds: Sequence[str]) -> None:
    """Makes these the chosen kinds of sample prompts."""
    st.session_state["kinds"] = list(kinds)


def choose_questions(picture: Picture) -> list[Question]:
    """Shows the ways to ask, and returns what is asked: at most `MAX_QUESTIONS`, in the order of a `Localization`."""
    samples_tab, record_tab, speak_tab, write_tab, upload_tab = st.tabs(
        ["Samples", "Record", "Speak", "Write", "Upload"]
    )
    asked: list[Question] = []
    with samples_tab:
        asked += _samples(picture)
    with record_tab:
        recording = st.audio_input("Record a sound", key="recording", help="A few seconds are enough.")
        if recording is not None:
            asked.append(_recording(recording.getvalue(), "audio"))
    with speak_tab:
        spoken = st.audio_input("Say what to look for", key="spoken", help="For example: the drum.")
        if spoken is not None:
            asked.append(_recording(spoken.getvalue(), "speech"))
    with write_tab:
        lines = st.text_area(
            "Write what to look for, one thing per line",
            key="texts",
            max_chars=600,
            placeholder="a drum\nthe old clock",
        )
        st.button("Look", key="look", type="primary")
        texts = dict.fromkeys(" ".join(line.split()) for line in (lines or "").splitlines() if line.strip())
        asked += [Question(text, "text", text.encode(), source=repr(text)) for text in texts]
    with upload_tab:
        for file in st.file_uploader("Upload sounds", _SOUNDS, accept_multiple_files=True, key="sound_files") or []:
            mime = mimetypes.guess_type(file.name)[0] or "audio/wav"
            asked.append(Question(file.name, "audio", file.getvalue(), mime, repr(file.name)))
    distinct = list({question.key: question for question in asked}.values())
    if len(distinct) > MAX_QUESTIONS:
        st.warning(f"The page looks for {MAX_QUESTIONS} things at once; the others are left out.")
    return sorted(distinct[:MAX_QUESTIONS], key=lambda question: _ORDER.index(question.modality))


def _recording(content: bytes, modality: Literal["audio", "speech"]) -> Question:
    name = "my recording" if modality == "audio" else "my words"
    return Question(name, modality, content, "audio/wav", repr(f"{name.replace(' ', '_')}.wav"), recorded=True)


def _samples(picture: Picture) -> list[Question]:
    here = [thing.kind for thing in picture.sample.things] if picture.sample else []
    kinds = list(dict.fromkeys([*here, *sorted(_by_kind())]))
    chosen = st.pills("Things to look for", kinds, selection_mode="multi", key="kinds")
    if here:
        st.caption(f"In this picture there are: {', '.join(here)}.")
    forms = st.segmented_control(
        "Asked for by",
        list(_FORMS),
        selection_mode="multi",
        default=["audio"],
        format_func=_FORMS.__getitem__,
        key="forms",
    )
    questions = []
    for kind in chosen:
        scenes = _by_kind()[kind]
        number, place = next((pair for pair in scenes if samples()[pair[0]] == picture.sample), scenes[0])
        questions += [_sample(number, place, form) for form in forms]
    return questions


@cache
def _by_kind() -> dict[str, list[tuple[int, int]]]:
    """For each kind, where it is among the samples: numbers of scenes, and of things in them."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, sample in enumerate(samples()):
        for place, thing in enumerate(sample.things):
            places.setdefault(thing.kind, []).append((number, place))
    return places


def _sample(number: int, place: int, form: str) -> Question:
    thing: SampleThing = samples()[number].things[place]
    source = f"samples()[{number}].things[{place}]"
    if form == "text":
        return Question(thing.text, "text", thing.text.encode(), source=f"{source}.text")
    if form == "speech":
        return Question(f"“{thing.phrase}”", "speech", thing.speech.read_bytes(), "audio/ogg", f"{source}.speech")
    return Question(f"the sound of the {thing.kind}", "audio", thing.sound.read_bytes(), "audio/ogg", f"{source}.sound")
