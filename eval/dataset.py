"""What every benchmark's data set looks like to the runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from avgrad.encoders.image import Preprocess

ProblemKind = Literal["missing file", "unreadable row", "unreadable file", "no pixels"]


class DataError(ValueError):
    """Data that cannot be evaluated; the message says in one sentence what is wrong and what would be accepted."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with one row of the data set.

    Attributes:
        row: number of the row, 1 for the first one after the header.
        kind: what sort of problem it is.
        message: which file or field, and what is wrong with it.
    """

    row: int
    kind: ProblemKind
    message: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.kind}: {self.message}"


@dataclass(frozen=True)
class Item:
    """One question of the benchmark: where in this image is what this prompt means?

    Attributes:
        row: number of its row, 1 for the first one after the header.
        image: the image's name within the data set.
        class_id: what the prompt means.
        class_name: the same in words.
        prompt: name of the prompt's file within the data set.
        span: begin and end in seconds of the spoken word, or None.
    """

    row: int
    image: str
    class_id: int
    class_name: str
    prompt: str
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sample:
    """An item, loaded.

    Attributes:
        pixels: as the model wants them, float32 `[3, h, w]`.
        clips: log-mel clips of each of the data set's timings, float32 `[P, clips, 1, 128, 204]`.
        mask: where the thing is, boolean `[side, side]`.
        digest: SHA-256 of the files it was loaded from.
    """

    pixels: Tensor
    clips: Tensor
    mask: Tensor
    digest: bytes


class DataSet(Protocol):
    """A benchmark's data.

    Attributes:
        name: such as "ade20k-sound".
        side: height and width in pixels of the masks, and of the heatmaps that are held against them.
        timings: which parts of a prompt are used, each for a heatmap of its own.
        items: what can be evaluated, as far as is known before it is loaded.
        problems: what is known before loading to be wrong.
        num_rows: number of rows that the benchmark's definition selects, with or without problems.
        fingerprint: changes whenever the list of items or the size of a file changes.
    """

    name: str
    side: int
    timings: tuple[str, ...]
    items: list[Item]
    problems: list[Problem]
    num_rows: int
    fingerprint: str

    def load(self, item: Item, preprocess: Preprocess) -> Sample:
        """Load an item.

        Raises:
            DataError: one of its files cannot be read.
        """
        ...
