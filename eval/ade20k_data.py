"""ADE20K Sound-Prompted and Speech-Prompted in their published layout (Hamilton et al., CVPR 2024).

prompted_segmentation.csv        one row per prompt
frames/<image_location>          images
annotations/<image_location, with .jpg -> _seg.png>   label maps: class id = (R // 10) * 256 + G
audio/<base name of vggsound_file or speech_prompt_file>
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image

from avgrad.encoders.audio import log_mel_clips
from avgrad.encoders.image import Preprocess, center_crop
from avgrad.errors import MediaError
from avgrad.media import load_image, open_audio
from avgrad.scenes.dataset import decode_annotation
from eval.dataset import DataError, Item, Problem, Sample, checked_name, file_size, is_text, read_table, shown

Prompt = Literal["sound", "speech"]

CSV_NAME = "prompted_segmentation.csv"
FOLDERS: Mapping[Prompt, str] = {"sound": "ADE20KSoundPrompted", "speech": "ADE20KSpeechPrompted"}
PROMPT_COLUMNS: Mapping[Prompt, str] = {"sound": "vggsound_file", "speech": "speech_prompt_file"}
NAME_COLUMNS = ("class_name", "ade_class_name")
SIDE = 224
MAX_CLASSES = 26 * 256  # that an annotation can encode
# "Advanced" adds this much to the time of the word on each side.
MARGIN_SECONDS = 0.2

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

# What pandas, which reads the table in the original, takes for a missing value.
_EMPTY = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip


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


class Ade20k:
    """ADE20K Sound- or Speech-Prompted, an `eval.dataset.DataSet`.

    Args:
        root: the folder that holds `prompted_segmentation.csv`, or the one around it.
        prompt: "sound" or "speech".
        limit: number of items, the first ones; None for all.

    Raises:
        DataError: the table is missing or cannot be read, lacks a column or has no row for this prompt.
    """

    def __init__(self, root: str | Path, prompt: Prompt, limit: int | None = None) -> None:
        self.name, self.prompt, self.side = f"ade20k-{prompt}", prompt, SIDE
        self.timings: tuple[str, ...] = ("basic",) if prompt == "sound" else ("basic", "advanced")
        self.root = Path(root)
        table = self.root / CSV_NAME
        try:
            if not table.exists() and (self.root / FOLDERS[prompt] / CSV_NAME).exists():
                self.root /= FOLDERS[prompt]
                table = self.root / CSV_NAME
            content = table.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{root} holds no {CSV_NAME}; the folder of {FOLDERS[prompt]} or the one around it is expected"
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{shown(str(table))} cannot be read ({error}); a CSV table is expected") from None
        columns, rows = read_table(table, content)
        column = PROMPT_COLUMNS[prompt]
        needed = ["image_location", "ade_class_id", column, *(["timing"] if prompt == "speech" else [])]
        missing = [name for name in needed if name not in columns]
        if missing:
            raise DataError(f"{table} has no column {missing[0]}; the columns {', '.join(needed)} are expected")

        items: list[Item] = []
        self.problems: list[Problem] = []
        self.num_rows = 0
        digest = hashlib.sha256(content)
        for number, row in enumerate(rows, start=1):
            if row[column] in _EMPTY or _number(row["ade_class_id"]) == 0:
                continue
            self.num_rows += 1
            try:
                item = self._item(number, row)
            except DataError as error:
                self.problems.append(Problem(number, "unreadable row", str(error)))
                continue
            try:
                sizes = [file_size(path) for path in self._paths(item)]
            except DataError as error:
                self.problems.append(Problem(number, "missing file", str(error)))
                continue
            digest.update(json.dumps([number, *sizes]).encode())
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

    def _item(self, number: int, row: Mapping[str, str]) -> Item:
        column = PROMPT_COLUMNS[self.prompt]
        image = checked_name("image_location", row["image_location"].strip())
        prompt = checked_name(column, row[column].strip().rsplit("/", 1)[-1])
        if not image.endswith(".jpg"):
            raise DataError(f"image_location is {shown(image)}; a name that ends in .jpg is expected")
        identity = _number(row["ade_class_id"])
        if not identity.is_integer() or not 0 <= identity < MAX_CLASSES:
            raise DataError(
                f"ade_class_id is {shown(row['ade_class_id'])}; a whole number from 0 to {MAX_CLASSES - 1} is expected"
            )
        name = next((row[key] for key in NAME_COLUMNS if row.get(key)), str(int(identity)))
        if not is_text(name):
            raise DataError(f"the class's name is {shown(name)}; text in UTF-8 is expected")
        span = _span(row["timing"]) if self.prompt == "speech" else None
        return Item(number, image, int(identity), name, prompt, span)

    def _paths(self, item: Item) -> tuple[Path, Path, Path]:
        labels = item.image.removesuffix(".jpg") + "_seg.png"
        return (
            self.image_path(item.image),
            self.root / "annotations" / labels,
            self.root / "audio" / item.prompt,
        )

    def image_path(self, image: str) -> Path:
        """The path of an image."""
        return self.root / "frames" / image

    def image(self, image: str, resampling: str = "bicubic") -> Image.Image:
        """An image as it is evaluated: 224 x 224, RGB.

        Raises:
            MediaError: it cannot be read.
        """
        whole = as_stored(self.image_path(image))
        return center_crop(whole, self.side, resampling)

    def load(self, item: Item, preprocess: Preprocess) -> Sample:
        """Load an item.

        For a model with another input size, the square of 224 pixels is resized to it, so that all models see the same
        part of the image.

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
        square = center_crop(image, self.side, preprocess.resampling)
        mask = decode_annotation(np.asarray(center_crop(labels, self.side, "nearest"))) == item.class_id
        return Sample(preprocess(square), torch.stack(clips), torch.from_numpy(mask), digest.digest())


def _number(text: str) -> float:
    """The number in a field; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _span(text: str) -> tuple[float, float]:
    """The time of the spoken word: JSON `[start, end]`, in seconds."""
    try:
        begin, end = (float(value) for value in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        begin = end = math.nan
    if not 0 <= begin < end < math.inf:
        raise DataError(f"timing is {shown(text)}; JSON [start, end] in seconds is expected")
    return begin, end
