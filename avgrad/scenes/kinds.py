"""The kinds of sounding things that the made-up scenes are about."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of sounding thing.

    Attributes:
        name: English noun, unique, without an article.
        synonyms: other nouns for the same thing, used in text prompts only.
        ade_class_id: class id in the annotations (1 or more; 0 is the background). The ids are numbers of our
            own, not those of ADE20K; they are spread past 256 so that both colour channels of ADE20K's
            encoding are used.
    """

    name: str
    synonyms: tuple[str, ...]
    ade_class_id: int


KINDS: tuple[Kind, ...] = (
    Kind("bell", ("church bell", "ringing bell"), 41),
    Kind("drum", ("snare drum", "drum beat"), 128),
    Kind("guitar", ("acoustic guitar", "strummed guitar"), 215),
    Kind("piano", ("upright piano", "piano keys"), 302),
    Kind("siren", ("police siren", "alarm light"), 389),
    Kind("clock", ("ticking clock", "wall clock"), 476),
    Kind("telephone", ("phone", "ringing phone"), 563),
    Kind("rain", ("rain cloud", "rainfall"), 650),
    Kind("car", ("automobile", "car horn"), 737),
    Kind("train", ("steam train", "locomotive"), 824),
    Kind("helicopter", ("chopper", "flying helicopter"), 911),
    Kind("bird", ("singing bird", "songbird"), 998),
    Kind("bee", ("bumblebee", "buzzing bee"), 1085),
    Kind("dog", ("puppy", "barking dog"), 1172),
    Kind("cat", ("kitten", "meowing cat"), 1259),
    Kind("frog", ("toad", "croaking frog"), 1346),
)
"""All kinds; the position in this tuple is the kind's number everywhere in `avgrad.scenes`."""


def kind_index(name: str) -> int:
    """Returns the number of the kind called `name`; raises `KeyError` where there is none."""
    for index, kind in enumerate(KINDS):
        if kind.name == name:
            return index
    raise KeyError(f"no kind of thing is called {name!r}; there are {', '.join(kind.name for kind in KINDS)}")
