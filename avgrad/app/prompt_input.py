"""What the visitor looks for: sample sounds, the microphone, files and texts, all of them at once."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from functools import cache
from typing import Literal

import streamlit as st

from avgrad.app.image import InputImage
from avgrad.app.question import MAX_QUESTIONS, Question
from avgrad.scenes.samples import SampleObject, samples

_SOUNDS = ("wav", "mp3", "ogg", "oga", "opus", "flac", "m4a", "aac", "webm", "aif", "aiff", "mp4", "mov")
_FORMS = {"audio": "Sound", "speech": "Spoken words", "text": "Text"}
_ORDER = ("audio", "speech", "text")  # of prompts in a Localization


def choose_classes(classes: Sequence[str]) -> None:
    """Makes these the chosen classes of sample prompts."""
    st.session_state["classes"] = list(classes)


def choose_questions(image: InputImage) -> list[Question]:
    """Shows the ways to ask, and returns what is asked: at most `MAX_QUESTIONS`, in the order of a `Localization`."""
    samples_tab, record_tab, speak_tab, write_tab, upload_tab = st.tabs(
        ["Samples", "Record", "Speak", "Write", "Upload"]
    )
    asked: list[Question] = []
    with samples_tab:
        asked += _samples(image)
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
            "Write what to look for, one object per line",
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
        st.warning(f"The page looks for {MAX_QUESTIONS} objects at once; the others are left out.")
    return sorted(distinct[:MAX_QUESTIONS], key=lambda question: _ORDER.index(question.modality))


def _recording(content: bytes, modality: Literal["audio", "speech"]) -> Question:
    name = "my recording" if modality == "audio" else "my words"
    return Question(name, modality, content, "audio/wav", repr(f"{name.replace(' ', '_')}.wav"), recorded=True)


def _samples(image: InputImage) -> list[Question]:
    here = [obj.object_class for obj in image.sample.objects] if image.sample else []
    classes = list(dict.fromkeys([*here, *sorted(_by_class())]))
    chosen = st.pills("Objects to look for", classes, selection_mode="multi", key="classes")
    if here:
        st.caption(f"In this image there are: {', '.join(here)}.")
    forms = st.segmented_control(
        "Asked for by",
        list(_FORMS),
        selection_mode="multi",
        default=["audio"],
        format_func=_FORMS.__getitem__,
        key="forms",
    )
    questions = []
    for object_class in chosen:
        scenes = _by_class()[object_class]
        number, place = next((pair for pair in scenes if samples()[pair[0]] == image.sample), scenes[0])
        questions += [_sample(number, place, form) for form in forms]
    return questions


@cache
def _by_class() -> dict[str, list[tuple[int, int]]]:
    """For each class, where it is among the samples: numbers of scenes, and of objects in them."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, sample in enumerate(samples()):
        for place, obj in enumerate(sample.objects):
            places.setdefault(obj.object_class, []).append((number, place))
    return places


def _sample(number: int, place: int, form: str) -> Question:
    obj: SampleObject = samples()[number].objects[place]
    source = f"samples()[{number}].objects[{place}]"
    if form == "text":
        return Question(obj.text, "text", obj.text.encode(), source=f"{source}.text")
    if form == "speech":
        return Question(f"“{obj.phrase}”", "speech", obj.speech.read_bytes(), "audio/ogg", f"{source}.speech")
    return Question(
        f"the sound of the {obj.object_class}", "audio", obj.sound.read_bytes(), "audio/ogg", f"{source}.sound"
    )
