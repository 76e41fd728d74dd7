"""The interface between a benchmark's data set and the runner."""

from __future__ import annotations

import csv
import io
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, Protocol

from torch import Tensor

from avgrad.encoders.image import Preprocess
from avgrad.errors import InputError

ProblemKind = Literal["missing file", "unreadable row", "unreadable file", "no pixels"]


class DataError(InputError):
    """Data that cannot be evaluated; the message says what is wrong and what is accepted."""


MAX_SHOWN = 160  # characters of a field or a path in a message


def checked_name(field: str, text: str) -> str:
    """A file's name from a table, if it stays inside its folder.

    Args:
        field: the column, for the message.
        text: the name, in which `read_table` has marked what is not text.

    Raises:
        DataError: an absolute path, one with "..", or one that is not UTF-8 or holds NUL.
    """
    if not is_text(text):
        raise DataError(f"{field} is {shown(text)}; a name in UTF-8 without control characters is expected")
    for kind in (PurePosixPath, PureWindowsPath):  # data are read on either system
        path = kind(text)
        if path.is_absolute() or path.drive or path.root or ".." in path.parts:
            raise DataError(f"{field} is {shown(text)}; a path inside the data set's folder is expected")
    return text


def shown(text: str) -> str:
    """A field or a path as messages show it: quoted, in ASCII, its middle left out where it is long."""
    return ascii(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]}...{text[-MAX_SHOWN // 2 :]}")


def is_text(text: str) -> bool:
    """Whether a field was UTF-8 and holds no control characters."""
    return not any(unicodedata.category(character) in ("Cs", "Cc") for character in text)


def file_size(path: Path) -> int:
    """The size of a regular file in bytes.

    Raises:
        DataError: there is none, or the system does not accept such a name.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{shown(str(path))} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(str(path))} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown(str(path))} is not a regular file")
    return status.st_size


def read_table(path: Path, content: bytes) -> tuple[list[str], list[dict[str, str]]]:
    """A CSV table: its columns, and its rows with empty strings for missing fields.

    Bytes that are not UTF-8 become lone surrogates and NUL becomes U+0001, so that one bad field costs one row:
    `checked_name` refuses both.

    Args:
        path: of the table, for the message.
        content: of the file.

    Raises:
        DataError: the header is not UTF-8, or this is not a CSV table.
    """
    text = content.decode("utf-8-sig", errors="surrogateescape").replace("\0", "\1")
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    try:
        columns = list(reader.fieldnames or ())
        rows = [{key: value for key, value in row.items() if isinstance(key, str)} for row in reader]
    except csv.Error as error:
        raise DataError(f"{path} cannot be read ({error}); a CSV table in UTF-8 is expected") from None
    if not all(map(is_text, columns)):
        raise DataError(f"{path} cannot be read (its header is not UTF-8); a CSV table in UTF-8 is expected")
    return columns, rows


@dataclass(frozen=True)
class Problem:
    """Something wrong with one row of the data set.

    Attributes:
        row: number of the row, 1 for the first one after the header.
        kind: of problem.
        message: which file or field, and what is wrong with it.
    """

    row: int
    kind: ProblemKind
    message: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.kind}: {self.message}"


@dataclass(frozen=True)
class Item:
    """An item of the benchmark: an image and a prompt for one class in it.

    Attributes:
        row: number of its row, 1 for the first one after the header.
        image: the image's name within the data set.
        class_id: the class that the prompt is of.
        class_name: its name.
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
        pixels: preprocessed for the model, float32 `[3, h, w]`.
        clips: log-mel clips for each of the data set's timings, float32 `[P, clips, 1, 128, 204]`.
        mask: pixels of the class, boolean `[side, side]`.
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
        side: height and width in pixels of the masks and of the heatmaps compared with them.
        timings: the parts of a prompt that are used, each for a heatmap of its own.
        items: what can be evaluated, as far as is known before loading.
        problems: found before loading.
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
