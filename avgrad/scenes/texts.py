"""Text prompts for the classes."""

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
"""Templates with `{}` for the name; the held-out ones combine the same words in other ways."""


def texts(object_class: int, split: Split) -> tuple[str, ...]:
    """All text prompts of a class.

    Args:
        object_class: number of the class in `CLASSES`.
        split: "train" or "heldout". Both have the plain name and the synonyms; they share no template.

    Returns:
        The name, the synonyms, every template with the name, then every template with each synonym; lower case.
    """
    names = (CLASSES[object_class].name, *CLASSES[object_class].synonyms)
    return (*names, *(template.format(name) for name in names for template in TEMPLATES[split]))
