"""Prompts for the objects of a sample scene, and how well they are localized."""

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
        obj: the object that the prompt is for.
        modality: of the prompt.
        index: of the prompt in the scene's `Localization`.
        score: cosine similarity of image and prompt, in [-1, 1].
        iou: intersection over union of the mask at 0.5 and the true mask; None for an object that is not in the scene.
        on_object: whether the hottest pixel is on the object; None for an object that is not in the scene.
    """

    obj: SampleObject
    modality: Modality
    index: int
    score: float
    iou: float | None = None
    on_object: bool | None = None

    @property
    def words(self) -> str:
        """The prompt in words."""
        if self.modality == "audio":
            return f"the sound of the {self.obj.object_class}"
        return self.obj.phrase if self.modality == "speech" else self.obj.text


@dataclass(frozen=True, eq=False)
class SceneResult:
    """A sample scene with its prompts' heatmaps.

    Attributes:
        sample: the scene.
        result: of all its prompts.
        answers: one per object of the scene and modality.
        absent: of a prompt for an object that is not in the scene.
    """

    sample: Sample
    result: Localization
    answers: tuple[Answer, ...]
    absent: Answer

    def answer(self, obj: SampleObject, modality: Modality) -> Answer:
        """The answer to one prompt."""
        return next(answer for answer in self.answers if answer.obj is obj and answer.modality == modality)


def localize_scene(localizer: Localizer, sample: Sample, absent: SampleObject, number: int) -> SceneResult:
    """Localizes every object of a scene by sound, speech and text, and one object that is not in it by one of them.

    Args:
        localizer: of a model that takes sounds and texts.
        sample: the scene.
        absent: an object whose class is not in the scene.
        number: of the scene; the modality of the absent object's prompt cycles with it.
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
            missed = Answer(obj, modality, index, score)
            continue
        truth, (column, row) = obj.mask(), result.peak(index)
        iou = float((masks[index] & truth).sum() / (masks[index] | truth).sum())
        answers.append(Answer(obj, modality, index, score, iou, bool(truth[row, column])))
    return SceneResult(sample, result, tuple(answers), missed)
