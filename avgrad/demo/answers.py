"""What was asked about a sample scene, and how good the answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avgrad.localization import Localization
from avgrad.localizer import Localizer
from avgrad.scenes.samples import Sample, SampleThing

Modality = Literal["audio", "speech", "text"]
MODALITIES: tuple[Modality, ...] = ("audio", "speech", "text")


@dataclass(frozen=True)
class Answer:
    """One prompt in one scene.

    Attributes:
        thing: what was asked for.
        modality: how.
        index: which prompt of the scene's `Localization` it is.
        score: cosine similarity of picture and prompt, in [-1, 1].
        iou: intersection over union of the mask at 0.5 and the true mask; None for a thing that is not in the scene.
        on_thing: whether the hottest pixel is one of the thing's; None for a thing that is not in the scene.
    """

    thing: SampleThing
    modality: Modality
    index: int
    score: float
    iou: float | None = None
    on_thing: bool | None = None

    @property
    def words(self) -> str:
        """What was asked, in words: of a sound, what it is of."""
        if self.modality == "audio":
            return f"the sound of the {self.thing.kind}"
        return self.thing.phrase if self.modality == "speech" else self.thing.text


@dataclass(frozen=True, eq=False)
class Look:
    """A sample scene and what was found in it.

    Attributes:
        sample: the scene.
        result: of all its prompts.
        answers: for each thing of the scene, in its order, one by each modality.
        absent: the answer to a prompt for a thing that is not there.
    """

    sample: Sample
    result: Localization
    answers: tuple[Answer, ...]
    absent: Answer

    def answer(self, thing: SampleThing, modality: Modality) -> Answer:
        """The answer for a thing of the scene."""
        return next(answer for answer in self.answers if answer.thing is thing and answer.modality == modality)


def look(localizer: Localizer, sample: Sample, absent: SampleThing, number: int) -> Look:
    """Looks for everything in a scene, by sound, by spoken name and by text, and for one thing that is not in it.

    Args:
        localizer: of any model that understands sounds and texts.
        sample: the scene.
        absent: a thing whose kind is not in the scene.
        number: of the scene; the modality of the absent thing's prompt goes by it.
    """
    missing = MODALITIES[number % len(MODALITIES)]
    asked: dict[Modality, list[SampleThing]] = {
        modality: [*sample.things, absent] if modality == missing else list(sample.things) for modality in MODALITIES
    }
    localizer.set_image(sample.image)
    result = localizer.localize(
        audio=[thing.sound for thing in asked["audio"]],
        speech=[thing.speech for thing in asked["speech"]],
        text=[thing.text for thing in asked["text"]],
    )
    masks = result.mask(0.5).numpy()
    answers = []
    for index, (modality, thing) in enumerate((m, thing) for m in MODALITIES for thing in asked[m]):
        score = float(result.scores[index])
        if thing is absent:
            nothing = Answer(thing, modality, index, score)
            continue
        truth, (column, row) = thing.mask(), result.peak(index)
        iou = float((masks[index] & truth).sum() / (masks[index] | truth).sum())
        answers.append(Answer(thing, modality, index, score, iou, bool(truth[row, column])))
    return Look(sample, result, tuple(answers), nothing)
