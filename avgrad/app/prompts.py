"""The prompts: sample sounds, the microphone, files and texts together; and a card for each with its score."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Literal, NamedTuple

import streamlit as st

from avgrad.app.model_pool import BUNDLED
from avgrad.app.session import MAX_QUESTIONS, Answer, InputImage, Question, Session
from avgrad.app.sidebar import PE_AV, installed_pe_av
from avgrad.app.style import css, plain
from avgrad.drawing import MAX_SECONDS, PALETTE, SoundImage
from avgrad.models.model import Model
from avgrad.scenes.samples import SampleObject, samples

_SOUND_TYPES = ("wav", "mp3", "ogg", "oga", "opus", "flac", "m4a", "aac", "webm", "aif", "aiff", "mp4", "mov")
_MODALITIES = {"audio": "Sound", "speech": "Spoken words", "text": "Text"}  # in the order of a Localization's prompts
_CARD_NAMES = {"audio": "sound", "speech": "speech", "text": "text"}

# ------------------------------------------------------------------ what is looked for


def choose_classes(classes: Sequence[str]) -> None:
    """Makes these the chosen classes of sample prompts."""
    st.session_state["classes"] = list(classes)


def choose_questions(image: InputImage, model: Model) -> list[Question]:
    """Shows the sources of prompts, and returns at most `MAX_QUESTIONS` of them, in the order of a `Localization`.

    Args:
        image: what is looked at.
        model: what localizes.
    """
    samples_tab, record_tab, speak_tab, write_tab, upload_tab = st.tabs(
        ["Samples", "Record", "Speak", "Write", "Upload"]
    )
    asked: list[Question] = []
    with samples_tab:
        asked += _sample_questions(image)
    with record_tab:
        recording = st.audio_input("Record a sound", key="recording", help="A few seconds are enough.")
        if recording is not None:
            asked.append(_recording(recording.getvalue(), "audio"))
    with speak_tab:
        if "audio" in model.modalities and not getattr(model, "understands_words", False):
            _suggest_model_of_words(model.name)
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
        files = st.file_uploader("Upload sounds", _SOUND_TYPES, accept_multiple_files=True, key="sound_files")
        for file in files or []:
            mime = mimetypes.guess_type(file.name)[0] or "audio/wav"
            asked.append(Question(file.name, "audio", file.getvalue(), mime, repr(file.name)))
    distinct = list({question.key: question for question in asked}.values())
    if len(distinct) > MAX_QUESTIONS:
        st.warning(f"At most {MAX_QUESTIONS} prompts are used at once; the others are left out.")
    order = list(_MODALITIES)
    return sorted(distinct[:MAX_QUESTIONS], key=lambda question: order.index(question.modality))


def _suggest_model_of_words(name: str) -> None:
    """Says that a model does not understand words, and offers one that does."""
    other = installed_pe_av() or BUNDLED
    about = "" if other != BUNDLED else ", for drawings like the samples"
    st.info(f"{plain(name)} hears that somebody speaks, but not what is said. {other} understands words{about}.")
    choice = PE_AV if other != BUNDLED else BUNDLED
    st.button(f"Use {other}", key="use_words", on_click=lambda: st.session_state.update(model=choice))


def _recording(content: bytes, modality: Literal["audio", "speech"]) -> Question:
    name = "my recording" if modality == "audio" else "my words"
    return Question(name, modality, content, "audio/wav", repr(f"{name.replace(' ', '_')}.wav"), recorded=True)


def _sample_questions(image: InputImage) -> list[Question]:
    here = [obj.object_class for obj in image.sample.objects] if image.sample else []
    classes = list(dict.fromkeys([*here, *sorted(_places())]))
    chosen = st.pills("Objects to look for", classes, selection_mode="multi", key="classes")
    if here:
        st.caption(f"In this image: {', '.join(here)}.")
    modalities = st.segmented_control(
        "Prompt by",
        list(_MODALITIES),
        selection_mode="multi",
        default=["audio"],
        format_func=_MODALITIES.__getitem__,
        key="forms",
    )
    questions = []
    for object_class in chosen:
        places = _places()[object_class]
        number, index = next((place for place in places if samples()[place[0]] == image.sample), places[0])
        questions += [_sample_question(number, index, modality) for modality in modalities]
    return questions


@cache
def _places() -> dict[str, list[tuple[int, int]]]:
    """For each class, the samples that have it: the sample's number, and the object's in it."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, sample in enumerate(samples()):
        for index, obj in enumerate(sample.objects):
            places.setdefault(obj.object_class, []).append((number, index))
    return places


def _sample_question(number: int, index: int, modality: str) -> Question:
    obj: SampleObject = samples()[number].objects[index]
    source = f"samples()[{number}].objects[{index}]"
    if modality == "text":
        return Question(obj.text, "text", obj.text.encode(), source=f"{source}.text")
    if modality == "speech":
        return Question(f"“{obj.phrase}”", "speech", obj.speech.read_bytes(), "audio/ogg", f"{source}.speech")
    label = f"the sound of the {obj.object_class}"
    return Question(label, "audio", obj.sound.read_bytes(), "audio/ogg", f"{source}.sound")


def choose_prompt(answer: Answer, key: str) -> int:
    """The index of the prompt that is shown in detail; there is a choice if there are several."""
    questions = answer.questions
    if len(questions) == 1:
        return 0
    chosen = st.selectbox(
        "Prompt", range(len(questions)), format_func=lambda index: f"{index + 1}: {questions[index].label}", key=key
    )
    return chosen or 0


# ------------------------------------------------------------------ what the scores mean


class Verdict(NamedTuple):
    """A score in words.

    Attributes:
        words: a short phrase.
        probability: that the object is in the image, in [0, 1]; None if the model is not calibrated.
        absent: whether the object is probably not in the image.
    """

    words: str
    probability: float | None
    absent: bool


_STEPS = (
    (0.8, "very likely in the image"),
    (0.5, "likely in the image"),
    (0.2, "perhaps not in the image"),
    (0.0, "probably not in the image"),
)


def verdicts(answer: Answer) -> list[Verdict]:
    """What the score of each prompt means: a probability for calibrated models, else a comparison."""
    return [_verdict(answer, index) for index in range(len(answer.questions))]


def _verdict(answer: Answer, index: int) -> Verdict:
    scores = [float(score) for score in answer.result.scores]
    score = scores[index]
    calibration = answer.localizer.model.calibration
    if calibration is not None:
        probability = calibration.probability(score)
        words = next(words for least, words in _STEPS if probability >= least)
        return Verdict(words, probability, probability < 0.5)
    modality = answer.questions[index].modality
    peers = [other for other, question in zip(scores, answer.questions, strict=True) if question.modality == modality]
    if len(peers) == 1:
        return Verdict("this model's scores only compare prompts: add another one", None, False)
    plural = "texts" if modality == "text" else "sounds"
    if score == max(peers):
        return Verdict(f"fits the image best of the {len(peers)} {plural}", None, False)
    difference = f"{max(peers) - score:.3f} below it"
    return Verdict(f"fits the image less well than the best of the {plural} ({difference})", None, False)


# ------------------------------------------------------------------ the cards

_NEAREST = '<p class="faint">The heatmap shows only what is most similar.</p>'
_FAINT = " <small>(faint: probably not in the image)</small>"


def show_cards(session: Session, answer: Answer) -> None:
    """A card for each prompt: its label, its score, and the waveform and spectrogram of a sound."""
    scores = answer.result.scores.tolist()
    several = len(answer.questions) > 1
    for number, (question, verdict, score) in enumerate(zip(answer.questions, verdicts(answer), scores, strict=True)):
        with st.container(border=True, key=f"card_{number}"):
            st.html(_heading(question, verdict, score, css(PALETTE[number]) if several else None))
            if question.modality != "text":
                _show_sound(question, session.sound(question))


def legend(answer: Answer, absent: Sequence[bool]) -> str:
    """The colour of each prompt, as HTML.

    Args:
        answer: what was found.
        absent: for each prompt whether it is probably not in the image.
    """
    items = (
        f'<li><i style="--prompt: {css(colour)}"></i>{escape(question.label)}{_FAINT if missing else ""}</li>'
        for question, colour, missing in zip(answer.questions, PALETTE, absent, strict=False)
    )
    return f'<ul class="legend" aria-label="Colours of the prompts">{"".join(items)}</ul>'


def _heading(question: Question, verdict: Verdict, score: float, colour: str | None) -> str:
    dot = f'<i style="--prompt: {colour}"></i>' if colour else ""
    figures = f"score {score:.3f}"
    if verdict.probability is not None:
        figures += f" · probability {100 * verdict.probability:.0f} %"
    style, nearest = ("no", _NEAREST) if verdict.absent else ("yes", "")
    return (
        f'<div class="asked">{dot}<b>{escape(question.label)}</b><small>{_CARD_NAMES[question.modality]}</small></div>'
        f'<div class="verdict"><span class="{style}">{escape(verdict.words)}</span><small>{figures}</small></div>'
        + nearest
    )


def _show_sound(question: Question, image: SoundImage) -> None:
    st.audio(question.content, format=question.mime, alt=f"Player of {question.label}")
    windows = ", ".join(f"{start:.1f} to {end:.1f} s" for start, end in dict.fromkeys(image.clips))
    what = "Clip windows of" if image.duration > MAX_SECONDS else "Waveform and log-mel spectrogram of"
    st.image(image.png, width="stretch", alt=f"{what} {question.label}; clip windows: {windows}")
    st.caption(f"{image.duration:.1f} s. Bars: the clip windows that the model encodes ({windows}).")
