"""Reading the tables and label maps of data sets: foreign input, checked once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from PIL import ExifTags, Image

from avgrad.media import load_image
from eval.task import DataError, Item, Problem

ItemType = TypeVar("ItemType", bound=Item)

# The inverse of the transposition that the EXIF orientations 2 to 8 ask for.
_INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

# What pandas, which reads ADE20K's table in the original, takes for a missing value.
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip

MAX_SHOWN = 160  # characters of a field or a path in a message


def check_rows(
    name: str,
    where: Path,
    rows: Iterable[tuple[int, Any]],
    make: Callable[[int, Any], ItemType],
    paths: Callable[[ItemType], Iterable[Path]],
    limit: int | None = None,
    keep_duplicates: bool = False,
) -> tuple[list[ItemType], list[Problem], int, str]:
    """Turn rows into items and look for their files; what is wrong with a row costs this row alone.

    Args:
        name: of the benchmark, for the message.
        where: the table or folder, for the message.
        rows: number and content of each.
        make: the item of a row; raises `DataError` if the row cannot be used.
        paths: the files of an item.
        limit: number of items, the first ones; None for all.
        keep_duplicates: whether a row equal to an earlier one counts again; it is reported in either case.

    Returns:
        The items that can be evaluated as far as is known before loading, the problems of the other rows, the number of
        rows, and a SHA-256 of the items and the sizes of their files.

    Raises:
        DataError: no row can be used.
    """
    items: list[ItemType] = []
    problems: list[Problem] = []
    num_rows, digest = 0, hashlib.sha256()
    first_rows: dict[bytes, int] = {}
    for number, row in rows:
        if len(items) == limit:
            break
        num_rows += 1
        try:
            item = make(number, row)
        except DataError as error:
            problems.append(Problem(number, "unreadable row", str(error)))
            continue
        content = json.dumps({name: value for name, value in vars(item).items() if name != "row"})
        first = first_rows.setdefault(hashlib.sha256(content.encode()).digest(), number)
        if first != number:
            consequence = "it counts again, as in the original" if keep_duplicates else "it is left out"
            problems.append(Problem(number, "duplicate row", f"the same as row {first}; {consequence}"))
            if not keep_duplicates:
                continue
        try:
            sizes = [file_size(path) for path in paths(item)]
        except DataError as error:
            problems.append(Problem(number, "missing file", str(error)))
            continue
        digest.update(json.dumps([number, content, *sizes]).encode())
        items.append(item)
    if not items:
        example = f", the first in {problems[0]}" if problems else ""
        raise DataError(
            f"{shown(str(where))} has no usable row for {name} ({len(problems)} have problems{example}); "
            "`python -m eval list` shows the expected layout"
        )
    return items, problems, num_rows, digest.hexdigest()


def need_columns(where: Path, columns: Iterable[str], needed: Iterable[str]) -> None:
    """Check that a table has the columns that are needed; it may have others.

    Raises:
        DataError: one is missing.
    """
    needed, known = list(needed), set(columns)
    missing = [name for name in needed if name not in known]
    if missing:
        raise DataError(f"{where} has no column {missing[0]}; the columns {', '.join(needed)} are expected")


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


def stream_table(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The number and the needed fields of each row of a CSV table that is too large for `read_table`.

    Args:
        path: of the table; what is no text is marked as `read_table` does.
        needed: columns; the table may have others. Missing fields are empty.

    Raises:
        DataError: it is missing, cannot be read or lacks a column.
    """
    file_size(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(line.replace("\0", "\1") for line in file)
            columns = next(reader, [])
            need_columns(path, columns, needed)
            places = [columns.index(name) for name in needed]
            for number, row in enumerate(filter(None, reader), start=1):
                yield number, [row[place] if place < len(row) else "" for place in places]
    except (OSError, csv.Error) as error:
        raise DataError(f"{shown(str(path))} cannot be read ({error}); a CSV table is expected") from None


def as_stored(path: Path) -> Image.Image:
    """An image as its pixels are stored, RGB: label maps match those, and the original ignores EXIF as well.

    Raises:
        MediaError: it cannot be read.
    """
    upright = load_image(path)
    try:
        with Image.open(path) as image:
            inverse = _INVERSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block was ignored
        inverse = None
    return upright if inverse is None else upright.transpose(inverse)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; bytes that are not become lone surrogates, which `checked_name` refuses.

    Raises:
        DataError: it is missing or cannot be read.
    """
    return read_bytes(path).decode("utf-8-sig", errors="surrogateescape")


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{shown(str(path))} does not exist; `python -m eval list` shows the expected layout") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(str(path))} cannot be read ({error})") from None


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a CSV table without a header, empty ones left out.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path).replace("\0", "\1"), newline="")) if row]
    except csv.Error as error:
        raise DataError(f"{shown(str(path))} cannot be read ({error}); a CSV table is expected") from None


def read_records(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON list.

    Raises:
        DataError: it is missing or no list of objects.
    """
    try:
        records = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(str(path))} cannot be read ({error}); a JSON list is expected") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{shown(str(path))} is not a JSON list of objects")
    return records


def parse_number(text: str) -> float:
    """The number in a field; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def time_span(text: str) -> tuple[float, float]:
    """The time of the spoken word: JSON `[start, end]`, in seconds."""
    try:
        begin, end = (float(value) for value in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        begin = end = math.nan
    if not 0 <= begin < end < math.inf:
        raise DataError(f"timing is {shown(text)}; JSON [start, end] in seconds is expected")
    return begin, end
