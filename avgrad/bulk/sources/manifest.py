"""Tables of images: CSV, JSON Lines and Parquet, with prompts of their own in each row."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from avgrad.bulk.item import Item, printable
from avgrad.bulk.sources.registry import Source, source
from avgrad.errors import InputError

PROMPTS = {"audio": "audio", "text": "text", "speech": "speech", "image_prompt": "image"}  # columns, and modalities


@source
class Manifest(Source):
    """A table with a column `image`, the path of an image relative to the table's folder.

    The columns `audio`, `text`, `speech` and `image_prompt` give the row's own prompts: one each, or, in JSON Lines and
    Parquet, a list. Empty cells are none. A column `id` names the rows instead of the paths; other columns are ignored.
    """

    form = "a table (.csv, .jsonl or .parquet) with a column 'image'"

    def takes(self, path: str) -> bool:
        return path.lower().endswith(tuple(_READERS)) and os.path.isfile(path)

    def items(self, path: str) -> Iterator[Item]:
        folder = os.path.dirname(os.path.abspath(path))
        read = _READERS[os.path.splitext(path)[1].lower()]
        try:
            for number, row in enumerate(read(path), start=1):
                yield _item(row, folder, f"row {number} of {os.path.basename(path)}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"source {path!r} cannot be read ({error}); {self.form} is expected") from None


def _item(row: Mapping[str, Any], folder: str, where: str) -> Item:
    image = row.get("image")
    if not isinstance(image, str) or not image:
        raise InputError(f"{where} has no path in its column 'image'")
    prompts = []
    for column, modality in PROMPTS.items():
        cell = row.get(column)
        for value in cell if isinstance(cell, list) else [cell]:
            if value is None or value == "":
                continue
            if not isinstance(value, str):
                raise InputError(f"{where} has {value!r} in its column {column!r}; expected a text or a list of texts")
            prompts.append((modality, value if modality == "text" else os.path.join(folder, value)))
    name = row.get("id")
    return Item(printable(image) if name in (None, "") else str(name), os.path.join(folder, image), prompts=(*prompts,))


def _csv(path: str) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _jsonl(path: str) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"line {number} of {os.path.basename(path)} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise InputError(f"line {number} of {os.path.basename(path)} is not a JSON object with a key 'image'")
            yield row


def _parquet(path: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in ("id", "image", *PROMPTS) if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise InputError(f"source {path!r} is damaged or no Parquet file ({error})") from None


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
