"""Written prompts for the classes."""

from typing import Literal

from avgrad.scenes.classes import CLASSES

Split = Literal["train", "heldout"]

# The bundled model was trained on exactly these words: changing one of them needs a new training.
TEMPLATES: dict[Split, tuple[str, ...]] = {
    "train": (
        "a {}",
        "the {}",
        "a photo of a {}",
        "a picture of a {}",
        "a drawing of the {}",
        "a small {}",
        "a big {}",
        "there is a {} in the scene",
        "i see a {}",
        "i hear a {}",
        "the sound of a {}",
        "where is the {} ?",
    ),
    "heldout": (
        "a photo of the {}",
        "a drawing of a {}",
        "the sound of the {}",
        "i see the {} in the picture",
        "there is the {}",
        "where is a {} ?",
    ),
}
"""Templates, `{}` standing for a name; the held-out ones put the words of the others together anew."""


def texts(object_class: int, split: Split) -> tuple[str, ...]:
    """Returns all written prompts of a class.

    Args:
        class: the class's number in `CLASSES`.
        split: "train" or "heldout". The plain name and the synonyms are in both, templates in one only.

    Returns:
        The plain name first, then the synonyms, then every template with the name, then with each synonym;
        lower case.
    """
    names = (CLASSES[object_class].name, *CLASSES[object_class].synonyms)
    return (*names, *(template.format(name) for name in names for template in TEMPLATES[split]))
