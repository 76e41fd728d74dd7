"""Hugging Face datasets on disk, as `Dataset.save_to_disk` writes them. The package `datasets` is not needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from avgrad.bulk.item import Item, printable
from avgrad.bulk.sources.registry import Source, source
from avgrad.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@source
class HuggingFaceDataset(Source):
    """A folder with `state.json`, `dataset_info.json` and Arrow files; its first column of images is read.

    An image's bytes lie uncompressed in an Arrow file, so each image is a range of bytes of it. A column of texts or
    labels is not read: give prompts of rows by a manifest.
    """

    form = "a Hugging Face dataset saved to disk"

    def takes(self, path: str) -> bool:
        return os.path.isfile(os.path.join(path, "state.json")) and os.path.isfile(
            os.path.join(path, "dataset_info.json")
        )

    def items(self, path: str) -> Iterator[Item]:
        state, info = (_json(os.path.join(path, name)) for name in ("state.json", "dataset_info.json"))
        try:
            files = [str(file["filename"]) for file in state["_data_files"]]
            features = dict(info["features"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"source {path!r} is no dataset of one split; save_to_disk writes one per split") from None
        column = next((name for name, kind in features.items() if isinstance(kind, dict) and _is_image(kind)), None)
        if column is None:
            raise InputError(f"source {path!r} has no column of images; it has {', '.join(features) or 'no columns'}")
        if state.get("_indices_data_files"):
            raise InputError(f"source {path!r} was saved with a selection of rows; call flatten_indices before saving")
        row = 0
        for file in files:
            if os.path.basename(file) != file:
                raise InputError(f"source {path!r} names a file outside of it: {file!r}")
            for place in _places(os.path.abspath(os.path.join(path, file)), column):
                yield Item(f"{printable(path)}/{row}", *place)
                row += 1


def _is_image(kind: dict[str, Any]) -> bool:
    return kind.get("_type") == "Image"


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error})") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return document


def _places(path: str, column: str) -> Iterator[tuple[str, int | None, int | None]]:
    """Path, offset and length of each image of an Arrow file (IPC stream)."""
    import pyarrow as pa

    try:
        with pa.memory_map(path) as file:
            size = file.size()
            start = file.read_buffer(1).address if size else 0
            file.seek(0)
            for batch in pa.ipc.open_stream(file):
                images = batch.column(batch.schema.get_field_index(column))
                for name, address, length in _values(images):
                    if length is None:  # the dataset holds the path of a file instead
                        yield os.path.join(os.path.dirname(path), name), None, None
                        continue
                    if not 0 <= address - start <= size - length:
                        raise InputError(f"{path} is compressed; save_to_disk writes uncompressed Arrow files")
                    yield path, address - start, length
    except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError) as error:
        raise InputError(f"{path} is damaged or no Arrow file ({error})") from None


def _values(images: pa.StructArray) -> Iterator[tuple[str, int, int | None]]:
    """The file name, address in memory and length of each value of a column of images; no length where it is null."""
    import pyarrow as pa

    content, names = images.field("bytes"), images.field("path").to_pylist()
    _, offsets, data = content.buffers()
    kind = np.int64 if pa.types.is_large_binary(content.type) else np.int32
    ends = np.frombuffer(offsets, dtype=kind)[content.offset :].tolist() if len(content) else []
    for index, (name, valid) in enumerate(zip(names, content.is_valid().to_pylist(), strict=True)):
        if valid:
            yield name or "", data.address + ends[index], ends[index + 1] - ends[index]
        else:
            yield name or "", 0, None
