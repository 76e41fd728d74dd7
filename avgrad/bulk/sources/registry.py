"""Kinds of sources. Each registers itself with `@source`, in a file of this folder."""

from __future__ import annotations

import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import TypeVar

from avgrad.bulk.item import Item
from avgrad.errors import InputError

# what the names of images end in, in folders and tar files
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class Source(ABC):
    """A kind of source. `@source` registers a subclass.

    Attributes:
        form: how messages describe it.
        last: whether it is asked only where no other kind takes the source.
    """

    form: str
    last: bool = False

    @abstractmethod
    def takes(self, path: str) -> bool:
        """Whether a path is of this kind."""

    @abstractmethod
    def items(self, path: str) -> Iterator[Item]:
        """Its images, in an order that depends on the source alone. Image files are not opened.

        Raises:
            InputError: the source cannot be read.
        """


SOURCES: list[Source] = []
Class = TypeVar("Class", bound="type[Source]")


def source(cls: Class) -> Class:
    """Registers a class as a kind of source."""
    SOURCES.append(cls())
    return cls


@cache
def kinds() -> list[Source]:
    """All kinds of sources, in the order in which they are asked."""
    import avgrad.bulk.sources

    for module in sorted(module.name for module in pkgutil.iter_modules(avgrad.bulk.sources.__path__)):
        import_module(f"avgrad.bulk.sources.{module}")
    return sorted(SOURCES, key=lambda kind: kind.last)


def kind_of(path: str) -> Source | None:
    """The kind of a source; None where no kind takes it."""
    return next((kind for kind in kinds() if kind.takes(path)), None)


def is_collection(sources: Sequence[str]) -> bool:
    """Whether sources are more than one image file."""
    if len(sources) != 1:
        return True
    kind = kind_of(sources[0])
    return kind is not None and not (kind.last and os.path.isfile(sources[0]))


def list_items(sources: Iterable[str | os.PathLike[str]]) -> list[Item]:
    """The images of all sources, in order.

    Args:
        sources: image files, folders, globs, manifests (CSV, JSON Lines, Parquet), tar files, saved Hugging Face
            datasets.

    Raises:
        InputError: a source is of no known kind, cannot be read, or has no image.
    """
    items: list[Item] = []
    for path in [os.fspath(source) for source in sources]:
        kind = kind_of(path)
        if kind is None:
            forms = ", ".join(kind.form for kind in kinds())
            raise InputError(f"source {path!r} does not exist; accepted are {forms}")
        before = len(items)
        try:
            items.extend(kind.items(path))
        except OSError as error:
            raise InputError(f"source {path!r} cannot be read ({error.strerror or error})") from None
        if len(items) == before:
            raise InputError(f"source {path!r} has no image; {kind.form} is expected")
    return items
