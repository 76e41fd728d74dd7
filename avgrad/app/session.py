"""Session: what one visitor's session holds; bounded, and nobody else's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from avgrad.app.image import InputImage, digest, read_image, sample_image
from avgrad.app.model_pool import ModelPool
from avgrad.app.question import Question
from avgrad.app.spectrogram import Spectrogram, draw_sound
from avgrad.errors import CheckpointError, MediaError, UnsupportedModelError
from avgrad.localization import Localization
from avgrad.localizer import Localizer
from avgrad.models.model import Model
from avgrad.prompts import Prompt
from avgrad.scenes.samples import samples

T = TypeVar("T")

MISTAKES = (MediaError, UnsupportedModelError, CheckpointError)
"""What a visitor may have done wrong: their sentence is shown, and the session goes on."""

_REMEMBERED = 16  # prompts, and images of sounds


def sentence(error: Exception, name: str) -> str:
    """What an error says, about the file of this name: bytes have none, so that the library cannot know it."""
    return str(error).replace("the given bytes", name)


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found.

    Attributes:
        image: where.
        questions: what was looked for, one for each prompt of `result`.
        result: the heatmaps.
        localizer: what made them.
    """

    image: InputImage
    questions: tuple[Question, ...]
    result: Localization
    localizer: Localizer


class Session:
    """One visitor's image, prompts and last answer.

    Args:
        model pool: the server's.
    """

    def __init__(self, model_pool: ModelPool) -> None:
        self.model_pool = model_pool
        self.image: InputImage | None = None
        self._name = ""
        self._localizer: Localizer | None = None
        self._set: InputImage | None = None
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._sounds: OrderedDict[str, Spectrogram] = OrderedDict()
        self._baselines: OrderedDict[tuple[str, str], Localization] = OrderedDict()
        self._answer: Answer | None = None

    def model(self, name: str) -> Model:
        """The model that this visitor works with from now on.

        Raises:
            UnsupportedModelError, CheckpointError: as `avgrad.load`.
        """
        if self._localizer is not None and self._name == name:
            return self._localizer.model
        # let go of the old one first: two large ones may not fit
        self._localizer = self._set = self._answer = None
        self._prompts.clear()
        self._baselines.clear()
        model = self.model_pool.model(name)
        self._name, self._localizer = name, Localizer(model)
        return model

    def see(self, content: bytes, name: str, taken: bool = False) -> None:
        """Sets this visitor's image; see `read_image`.

        Raises:
            MediaError: it is not an image, or is damaged; the last one stays.
        """
        if self.image is None or self.image.digest != digest(content):
            self.image = self.model_pool.work(read_image, content, name, taken)

    def see_sample(self, number: int) -> None:
        """Sets this visitor's image to that of a sample scene."""
        sample = samples()[number]
        if self.image is None or self.image.sample != sample:
            self.image = sample_image(number)

    def sound(self, question: Question) -> Spectrogram:
        """What a sound looks like.

        Raises:
            MediaError: it is no sound, or is damaged, or silent.
        """
        return _remembered(
            self._sounds, question.key, lambda: self.model_pool.work(draw_sound, question.content, question.label)
        )

    def look(self, image: InputImage, questions: Sequence[Question]) -> tuple[Answer | None, list[str]]:
        """Looks for everything asked, by the model chosen last.

        Args:
            image: where; its forward pass runs only if it is another one than the last time.
            questions: what for.

        Returns:
            The answer to the questions that have one, and a sentence about each of the others.
        """
        assert self._localizer is not None
        localizer, refused = self._localizer, []
        prompts: list[Prompt] = []
        answered = []
        for question in questions:
            try:
                prompts.append(self._prompt(localizer, question))
                answered.append(question)
            except MISTAKES as error:
                refused.append(sentence(error, question.label))
        if not answered:
            return None, refused
        last = self._answer
        if last is None or last.image is not image or last.questions != tuple(answered):

            def localize() -> Localization:
                if self._set is not image:
                    localizer.set_image(image.image)
                    self._set = image
                return localizer.localize(prompts=prompts)

            self._baselines.clear()
            self._answer = Answer(image, tuple(answered), self.model_pool.work(localize), localizer)
        return self._answer, list(dict.fromkeys(refused))

    def _prompt(self, localizer: Localizer, question: Question) -> Prompt:
        def encode() -> Prompt:
            given: Any = question.content.decode() if question.modality == "text" else question.content
            prompt = localizer.encode(**{question.modality: given})[0]
            return Prompt(prompt.embedding, question.label, question.modality)

        return _remembered(self._prompts, question.key, lambda: self.model_pool.work(encode))

    def baseline(self, answer: Answer, index: int, method: str) -> Localization:
        """What another method makes of one prompt of the answer.

        Raises:
            MediaError, UnsupportedModelError, ValueError: the method does not work with this model.
        """

        def localize() -> Localization:
            localizer = Localizer(answer.localizer.model, method=method, keep=False)
            localizer.set_image(answer.image.image)
            return localizer.localize(prompts=answer.result.prompts[index])

        key = method, answer.questions[index].key
        return _remembered(self._baselines, key, lambda: self.model_pool.work(localize))


def _remembered(memory: OrderedDict[Any, T], key: Any, make: Callable[[], T]) -> T:
    """What is remembered under a key, or made now; the oldest is forgotten."""
    if key not in memory:
        memory[key] = make()
        while len(memory) > _REMEMBERED:
            memory.popitem(last=False)
    memory.move_to_end(key)
    return memory[key]
