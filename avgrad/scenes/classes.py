"""The classes of sounding objects in synthetic scenes."""

from typing import NamedTuple


class ObjectClass(NamedTuple):
    """A class of sounding object.

    Attributes:
        name: English noun, unique, without an article.
        synonyms: other nouns for the same object, used in text prompts only.
        ade_class_id: class id in the annotations (1 or more; 0 is the background). The ids are not those of ADE20K;
            they go past 256 so that both colour channels of ADE20K's encoding are used.
    """

    name: str
    synonyms: tuple[str, ...]
    ade_class_id: int


CLASSES: tuple[ObjectClass, ...] = (
    ObjectClass("bell", ("church bell", "ringing bell"), 41),
    ObjectClass("drum", ("snare drum", "drum beat"), 128),
    ObjectClass("guitar", ("acoustic guitar", "strummed guitar"), 215),
    ObjectClass("piano", ("upright piano", "piano keys"), 302),
    ObjectClass("siren", ("police siren", "alarm light"), 389),
    ObjectClass("clock", ("ticking clock", "wall clock"), 476),
    ObjectClass("telephone", ("phone", "ringing phone"), 563),
    ObjectClass("rain", ("rain cloud", "rainfall"), 650),
    ObjectClass("car", ("automobile", "car horn"), 737),
    ObjectClass("train", ("steam train", "locomotive"), 824),
    ObjectClass("helicopter", ("chopper", "flying helicopter"), 911),
    ObjectClass("bird", ("singing bird", "songbird"), 998),
    ObjectClass("bee", ("bumblebee", "buzzing bee"), 1085),
    ObjectClass("dog", ("puppy", "barking dog"), 1172),
    ObjectClass("cat", ("kitten", "meowing cat"), 1259),
    ObjectClass("frog", ("toad", "croaking frog"), 1346),
)
"""All classes; a class's index in this tuple is its number everywhere in `avgrad.scenes`."""


def class_index(name: str) -> int:
    """The number of the class called `name`; raises `KeyError` if there is none."""
    for index, object_class in enumerate(CLASSES):
        if object_class.name == name:
            return index
    names = ", ".join(object_class.name for object_class in CLASSES)
    raise KeyError(f"there is no class {name!r}; the classes are {names}")
