"""A visitor's session: the image, the prompts and the last answer; bounded in size and shared with nobody."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from avgrad.app.model_pool import ModelPool
from avgrad.drawing import PALETTE, SoundImage, draw_sound
from avgrad.encoders.audio import clip_times
from avgrad.errors import InputError
from avgrad.localization import Localization
from avgrad.localizer import Localizer
from avgrad.media import load_image
from avgrad.models.model import Model
from avgrad.prompts import Prompt
from avgrad.scenes.samples import Sample, samples

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
Modality = Literal["audio", "speech", "text"]

MAX_QUESTIONS = len(PALETTE)  # as many as there are colours to tell them apart
MAX_SIDE = 1024  # in pixels; larger images are scaled down, so that their heatmaps fit in memory for many visitors
_CACHED = 16  # entries of each of a session's caches


@dataclass(frozen=True, eq=False)
class InputImage:
    """An image that was read and checked.

    Attributes:
        name: the file's name or the sample's title; shown as it is, never as markup.
        image: RGB, at most `MAX_SIDE` pixels wide and high.
        digest: identifies the file's content.
        source: the Python expression that gives the file.
        shrunk: whether the file has more pixels than `image`.
        sample: the sample scene, if it is one.
        photo: the file's bytes, if the visitor's camera took it and no file of it exists.
    """

    name: str
    image: Image.Image
    digest: str
    source: str
    shrunk: bool = False
    sample: Sample | None = None
    photo: bytes | None = None


@dataclass(frozen=True)
class Question:
    """A prompt as the visitor gave it, before a model encoded it.

    Attributes:
        label: the file's name or the words; shown as it is, never as markup.
        modality: what it is.
        content: a sound file's bytes, or a text in UTF-8.
        mime: media type of a sound file.
        source: the Python expression that gives the same prompt.
        recorded: whether it comes from the visitor's microphone, so that no file of it exists.
    """

    label: str
    modality: Modality
    content: bytes = field(repr=False)
    mime: str = ""
    source: str = ""
    recorded: bool = False

    @cached_property
    def key(self) -> str:
        """Identifies modality and content, whatever the label is."""
        return f"{self.modality}-{_digest(self.content)}"


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found.

    Attributes:
        image: the image.
        questions: one for each prompt of `result`.
        result: the heatmaps.
        localizer: what made them.
    """

    image: InputImage
    questions: tuple[Question, ...]
    result: Localization
    localizer: Localizer


class Session:
    """One visitor's model, image, prompts and last answer.

    Args:
        model_pool: the server's.
    """

    def __init__(self, model_pool: ModelPool) -> None:
        self.model_pool = model_pool
        self.image: InputImage | None = None
        self._name = ""
        self._localizer: Localizer | None = None
        self._image_set: InputImage | None = None  # the one that the localizer holds
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._sounds: OrderedDict[str, SoundImage] = OrderedDict()
        self._comparisons: OrderedDict[tuple[str, str], Localization] = OrderedDict()
        self._answer: Answer | None = None

    def model(self, name: str) -> Model:
        """Sets the session's model by name, and returns it.

        Raises:
            UnsupportedModelError, CheckpointError: as `avgrad.load`.
        """
        if self._localizer is not None and self._name == name:
            return self._localizer.model
        # the old model is released first: two large ones may not fit in memory
        self._localizer = self._image_set = self._answer = None
        self._prompts.clear()
        self._comparisons.clear()
        self._sounds.clear()  # models differ in their clip windows
        model = self.model_pool.model(name)
        self._name, self._localizer = name, Localizer(model)
        return model

    def set_image(self, content: bytes, name: str, photo: bool = False) -> None:
        """Sets the image from a file's bytes; see `read_image`.

        Raises:
            MediaError: it cannot be read as an image; the image set before stays.
        """
        if self.image is None or self.image.digest != _digest(content):
            self.image = self.model_pool.work(read_image, content, name, photo)

    def set_sample(self, number: int) -> None:
        """Sets the image to that of a sample scene."""
        if self.image is None or self.image.sample != samples()[number]:
            self.image = sample_image(number)

    def sound(self, question: Question) -> SoundImage:
        """The waveform and spectrogram of a sound.

        Raises:
            MediaError: it cannot be read as a sound, or is silent.
        """
        preprocess = None if self._localizer is None else getattr(self._localizer.model, "audio_preprocess", None)
        times = clip_times if preprocess is None else preprocess.clip_times
        return _cached(
            self._sounds,
            question.key,
            lambda: self.model_pool.work(draw_sound, question.content, question.label, times),
        )

    def localize(self, image: InputImage, questions: Sequence[Question]) -> tuple[Answer | None, list[str]]:
        """Localizes prompts in an image with the session's model.

        Args:
            image: the image; its forward pass runs only if it is another one than in the last call.
            questions: the prompts; each is encoded once.

        Returns:
            The answer to the questions that can be used, None if there is none; and an error message for each other
            question.
        """
        assert self._localizer is not None
        localizer = self._localizer
        prompts: list[Prompt] = []
        answered: list[Question] = []
        refused: list[str] = []
        for question in questions:
            try:
                prompts.append(self._prompt(localizer, question))
                answered.append(question)
            except InputError as error:
                refused.append(message(error, question.label))
        if not answered:
            return None, refused
        last = self._answer
        if last is None or last.image is not image or last.questions != tuple(answered):

            def localize() -> Localization:
                if self._image_set is not image:
                    localizer.set_image(image.image)
                    self._image_set = image
                return localizer.localize(prompts=prompts)

            self._comparisons.clear()
            self._answer = Answer(image, tuple(answered), self.model_pool.work(localize), localizer)
        return self._answer, list(dict.fromkeys(refused))

    def _prompt(self, localizer: Localizer, question: Question) -> Prompt:
        def encode() -> Prompt:
            given: Any = question.content.decode() if question.modality == "text" else question.content
            prompt = localizer.encode(**{question.modality: given})[0]
            return Prompt(prompt.embedding, question.label, question.modality)

        return _cached(self._prompts, question.key, lambda: self.model_pool.work(encode))

    def compare(self, answer: Answer, index: int, method: str) -> Localization:
        """The heatmap of another method for one prompt of an answer.

        Raises:
            InputError: the method does not support the model.
        """

        def localize() -> Localization:
            localizer = Localizer(answer.localizer.model, method=method, keep=False)
            localizer.set_image(answer.image.image)
            return localizer.localize(prompts=answer.result.prompts[index])

        key = method, answer.questions[index].key
        return _cached(self._comparisons, key, lambda: self.model_pool.work(localize))


def read_image(content: bytes, name: str, photo: bool = False) -> InputImage:
    """Reads an image from a file's bytes.

    Args:
        content: the file's bytes.
        name: its name.
        photo: whether the visitor's camera took it.

    Raises:
        MediaError: it cannot be read as an image.
    """
    image = load_image(content)
    shrunk = max(image.size) > MAX_SIDE
    if shrunk:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    return InputImage(name, image, _digest(content), repr(name), shrunk, photo=content if photo else None)


def sample_image(number: int) -> InputImage:
    """The image of a sample scene."""
    sample = samples()[number]
    source = f"samples()[{number}].image"
    return InputImage(sample.title, load_image(sample.image), f"sample {number}", source, sample=sample)


def message(error: InputError, name: str) -> str:
    """An error's message about an uploaded file: the library was given bytes, and does not know the file's name."""
    return str(error).replace("the given bytes", name)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cached(cache: OrderedDict[Any, T], key: Any, make: Callable[[], T]) -> T:
    """The entry of a key, made if missing; the least recently used entries are dropped."""
    if key not in cache:
        cache[key] = make()
        while len(cache) > _CACHED:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
