"""Reads ADE20KSoundPrompted and ADE20KSpeechPrompted in their published layout (Hamilton et al., CVPR 2024).

prompted_segmentation.csv        one row per prompt
frames/<image_location>          images
annotations/<image_location, with .jpg -> _seg.png>   label maps: class id = (R // 10) * 256 + G
audio/<base name of vggsound_file or speech_prompt_file>
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image

from avgrad.encoders.audio import log_mel_clips
from avgrad.encoders.image import Preprocess
from avgrad.errors import MediaError
from avgrad.media import load_image, open_audio
from eval.dataset import DataError, Item, Problem, Sample

Prompt = Literal["sound", "speech"]

CSV_NAME = "prompted_segmentation.csv"
FOLDERS: Mapping[Prompt, str] = {"sound": "ADE20KSoundPrompted", "speech": "ADE20KSpeechPrompted"}
PROMPT_COLUMNS: Mapping[Prompt, str] = {"sound": "vggsound_file", "speech": "speech_prompt_file"}
NAME_COLUMNS = ("class_name", "ade_class_name")
SIDE = 224
# "Advanced" uses this much more than the word's own time on each side.
MARGIN_SECONDS = 0.2

# What undoes the turning upright of an image with the EXIF orientation 2 to 8.
_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}

# What pandas, with which the original reads the table, takes for "no value".
_EMPTY = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip


def central_square(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    """The short side resized to `side`, then the central square, with torchvision's rounding."""
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    resized = image.resize((width, height), resampling)
    left, top = (round((length - side) / 2.0) for length in resized.size)
    return resized.crop((left, top, left + side, top + side))


def as_stored(path: Path) -> Image.Image:
    """An image as its pixels are stored, RGB: label maps are drawn over those, and the original heeds no EXIF either.

    Raises:
        MediaError: it cannot be read.
    """
    upright = load_image(path)
    try:
        with Image.open(path) as image:
            turned = _TURN_BACK.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block turned nothing
        turned = None
    return upright if turned is None else upright.transpose(turned)


def class_ids(labels: Image.Image) -> np.ndarray:
    """The class of each pixel of a label map, int32 `[H, W]`."""
    channels = np.asarray(labels, dtype=np.int32)
    ids: np.ndarray = channels[..., 0] // 10 * 256 + channels[..., 1]
    return ids


class Ade20k:
    """ADE20K Sound- or Speech-Prompted, a `eval.dataset.DataSet`.

    Args:
        root: the folder that holds `prompted_segmentation.csv`, or the one around it.
        prompt: "sound" or "speech".
        limit: only the first so many items; None for all.

    Raises:
        DataError: there is no such table, it cannot be read, lacks a column or has no rows of this prompt.
    """

    def __init__(self, root: str | Path, prompt: Prompt, limit: int | None = None) -> None:
        self.name, self.prompt, self.side = f"ade20k-{prompt}", prompt, SIDE
        self.timings: tuple[str, ...] = ("basic",) if prompt == "sound" else ("basic", "advanced")
        self.root = Path(root)
        if not (self.root / CSV_NAME).exists() and (self.root / FOLDERS[prompt] / CSV_NAME).exists():
            self.root /= FOLDERS[prompt]
        table = self.root / CSV_NAME
        try:
            content = table.read_bytes()
            rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        except FileNotFoundError:
            raise DataError(
                f"{root} holds no {CSV_NAME}; the folder of {FOLDERS[prompt]} or the one around it is expected"
            ) from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{table} cannot be read ({error}); a CSV table in UTF-8 is expected") from None
        column = PROMPT_COLUMNS[prompt]
        needed = ["image_location", "ade_class_id", column, *(["timing"] if prompt == "speech" else [])]
        missing = [name for name in needed if rows and name not in rows[0]]
        if missing:
            raise DataError(f"{table} has no column {missing[0]}; the columns {', '.join(needed)} are expected")

        items: list[Item] = []
        self.problems: list[Problem] = []
        self.num_rows = 0
        digest = hashlib.sha256(content)
        for number, row in enumerate(rows, start=1):
            if (row[column] or "") in _EMPTY or _number(row["ade_class_id"]) == 0:
                continue
            self.num_rows += 1
            try:
                item = self._item(number, row)
            except DataError as error:
                self.problems.append(Problem(number, "unreadable row", str(error)))
                continue
            sizes = {path: self._size(path) for path in self._paths(item)}
            absent = [str(path) for path, size in sizes.items() if size is None]
            if absent:
                self.problems.append(Problem(number, "missing file", ", ".join(absent)))
                continue
            digest.update(json.dumps([number, *sizes.values()]).encode())
            items.append(item)
            if limit is not None and len(items) == limit:
                break
        if not items:
            first = f", the first in {self.problems[0]}" if self.problems else ""
            raise DataError(
                f"{table} has no usable row for {prompt} prompts ({len(self.problems)} have problems{first}); rows "
                f"with {column} and an ade_class_id other than 0 are expected"
            )
        self.items, self.fingerprint = items, digest.hexdigest()

    def _item(self, number: int, row: Mapping[str, str | None]) -> Item:
        image, prompt = (
            (row["image_location"] or "").strip(),
            (row[PROMPT_COLUMNS[self.prompt]] or "").strip(),
        )
        if not image.endswith(".jpg"):
            raise DataError(f"image_location is {image!r}; a name that ends in .jpg is expected")
        identity = _number(row["ade_class_id"])
        if not identity.is_integer() or identity < 0:
            raise DataError(f"ade_class_id is {row['ade_class_id']!r}; a whole number of 0 or more is expected")
        name = next((row[key] for key in NAME_COLUMNS if row.get(key)), None) or str(int(identity))
        span = _span(row["timing"] or "") if self.prompt == "speech" else None
        return Item(number, image, int(identity), name, prompt.rsplit("/", 1)[-1], span)

    def _paths(self, item: Item) -> tuple[Path, Path, Path]:
        labels = item.image.removesuffix(".jpg") + "_seg.png"
        return (
            self.image_path(item.image),
            self.root / "annotations" / labels,
            self.root / "audio" / item.prompt,
        )

    def image_path(self, image: str) -> Path:
        """Where an image lies."""
        return self.root / "frames" / image

    def image(self, image: str, resampling: str = "bicubic") -> Image.Image:
        """An image as it is evaluated: 224 x 224, RGB.

        Raises:
            MediaError: it cannot be read.
        """
        whole = as_stored(self.image_path(image))
        return central_square(whole, self.side, Image.Resampling[resampling.upper()])

    @staticmethod
    def _size(path: Path) -> int | None:
        return path.stat().st_size if path.is_file() else None

    def load(self, item: Item, preprocess: Preprocess) -> Sample:
        """Load an item.

        A model of another input size than 224 gets the square of 224 pixels resized to its size: all models see the
        same part of the image.

        Raises:
            DataError: one of its files cannot be read, or image and label map differ in size.
        """
        image_path, labels_path, audio_path = self._paths(item)
        try:
            image, labels = as_stored(image_path), as_stored(labels_path)
            if image.size != labels.size:
                raise DataError(
                    f"{image_path.name} has {image.width} x {image.height} pixels and {labels_path.name} "
                    f"{labels.width} x {labels.height}; the same size is expected"
                )
            with open_audio(audio_path) as audio:
                clips = [log_mel_clips(audio)]
                if item.span is not None:
                    begin, end = item.span
                    bounds = max(begin - MARGIN_SECONDS, 0.0), min(end + MARGIN_SECONDS, audio.duration)
                    clips.append(log_mel_clips(audio, bounds))
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in (image_path, labels_path, audio_path)))
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        square = central_square(image, self.side, Image.Resampling[preprocess.resampling.upper()])
        mask = class_ids(central_square(labels, self.side, Image.Resampling.NEAREST)) == item.class_id
        return Sample(preprocess(square), torch.stack(clips), torch.from_numpy(mask), digest.digest())


def _number(text: str | None) -> float:
    """The number that a field holds; NaN if it holds none."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _span(text: str) -> tuple[float, float]:
    """The time of the spoken word from the table: JSON `[start, end]`, in seconds."""
    try:
        begin, end = (float(value) for value in json.loads(text))
    except (ValueError, TypeError):
        begin = end = math.nan
    if not 0 <= begin < end < math.inf:
        raise DataError(f"timing is {text!r}; JSON [start, end] in seconds is expected")
    return begin, end
