"""What was asked about a sample scene, and how good the answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avgrad.localization import Localization
from avgrad.localizer import Localizer
from avgrad.scenes.samples import Sample, SampleObject

Modality = Literal["audio", "speech", "text"]
MODALITIES: tuple[Modality, ...] = ("audio", "speech", "text")


@dataclass(frozen=True)
class Answer:
    """One prompt in one scene.

    Attributes:
        object: what was asked for.
        modality: how.
        index: which prompt of the scene's `Localization` it is.
        score: cosine similarity of image and prompt, in [-1, 1].
        iou: intersection over union of the mask at 0.5 and the true mask; None for an object that is not in the scene.
        on_thing: whether the hottest pixel is one of the object's; None for an object that is not in the scene.
    """

    obj: SampleObject
    modality: Modality
    index: int
    score: float
    iou: float | None = None
    on_object: bool | None = None

    @property
    def words(self) -> str:
        """What was asked, in words: of a sound, what it is of."""
        if self.modality == "audio":
            return f"the sound of the {self.obj.object_class}"
        return self.obj.phrase if self.modality == "speech" else self.obj.text


@dataclass(frozen=True, eq=False)
class Look:
    """A sample scene and what was found in it.

    Attributes:
        sample: the scene.
        result: of all its prompts.
        answers: for each object of the scene, in its order, one by each modality.
        absent: the answer to a prompt for an object that is not there.
    """

    sample: Sample
    result: Localization
    answers: tuple[Answer, ...]
    absent: Answer

    def answer(self, obj: SampleObject, modality: Modality) -> Answer:
        """The answer for an object of the scene."""
        return next(answer for answer in self.answers if answer.obj is obj and answer.modality == modality)


def look(localizer: Localizer, sample: Sample, absent: SampleObject, number: int) -> Look:
    """Looks for everything in a scene, by sound, by spoken name and by text, and for one object that is not in it.

    Args:
        localizer: of any model that understands sounds and texts.
        sample: the scene.
        absent: an object whose class is not in the scene.
        number: of the scene; the modality of the absent object's prompt goes by it.
    """
    missing = MODALITIES[number % len(MODALITIES)]
    asked: dict[Modality, list[SampleObject]] = {
        modality: [*sample.objects, absent] if modality == missing else list(sample.objects) for modality in MODALITIES
    }
    localizer.set_image(sample.image)
    result = localizer.localize(
        audio=[obj.sound for obj in asked["audio"]],
        speech=[obj.speech for obj in asked["speech"]],
        text=[obj.text for obj in asked["text"]],
    )
    masks = result.mask(0.5).numpy()
    answers = []
    for index, (modality, obj) in enumerate((m, obj) for m in MODALITIES for obj in asked[m]):
        score = float(result.scores[index])
        if obj is absent:
            nothing = Answer(obj, modality, index, score)
            continue
        truth, (column, row) = obj.mask(), result.peak(index)
        iou = float((masks[index] & truth).sum() / (masks[index] | truth).sum())
        answers.append(Answer(obj, modality, index, score, iou, bool(truth[row, column])))
    return Look(sample, result, tuple(answers), nothing)
