"""AVSBench-semantic (Zhou et al., arXiv 2301.13190): which class sounds, and where, in video frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from eval.encoder import Encoder
from eval.metrics import avsbench as metric
from eval.reading import checked_name, is_text, read_text, shown
from eval.store import Measures
from eval.task import Array, Case, DataError, Published, Resampler, Row, task
from eval.tasks.avsbench import AvsBench, Frame

LABELS = "label2idx.json"
NUM_FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}  # by the column `label`
MAX_CLASSES = 256
BACKGROUND = "background"


@task("avsbench-avss")
class AvsBenchAvss(AvsBench):
    """AVSBench-semantic.

    The pixels above one half of the sound's min-max normalized heatmap get one class: the one whose name is closest to
    the sound. The rest is background. So a frame has one class, also where several sound. `binary_iou` leaves the class
    aside, and `class_accuracy` the place: it is the share of frames that show the class. The original fills videos of
    five frames up to ten with black ones and measures those, too; they are left out here.

    Args:
        root: the folder that holds `metadata.csv`.
        limit: number of items, the first ones; None for all.

    Raises:
        DataError: the lists are missing or cannot be used.
    """

    measures = "mIoU and F-score (beta^2 = 0.3) over classes of what sounds in video frames"
    layout = """metadata.csv (uid, label: v1s, v1m or v2, split)
label2idx.json (number of each class; that of "background", or 0, is the background)
LABEL/UID/frames/{0..}.jpg
LABEL/UID/labels_rgb/{0..}.png
LABEL/UID/audio.wav"""
    modalities = ("audio", "text")
    columns: ClassVar[Mapping[str, str]] = {
        "mean_iou": "mIoU",
        "f_score": "F-score",
        "mean_iou_without_background": "mIoU without background",
        "f_score_without_background": "F-score without background",
        "binary_iou": "binary mIoU",
        "class_accuracy": "class accuracy",
    }
    published = (
        Published(
            "TPAVI, PVT",
            {"mean_iou": 29.77, "f_score": 35.20},
            "Zhou et al., arXiv 2301.13190, by Chen et al., CVPR 2024",
            trained_with_masks=True,
        ),
        Published("CAVP", {"mean_iou": 39.78, "f_score": 50.67}, "Chen et al., CVPR 2024", trained_with_masks=True),
    )
    table = "metadata.csv"
    key = "uid"
    needed = ("uid", "label")

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        text = read_text(Path(root) / LABELS)
        names = _class_names(Path(root) / LABELS, text)
        self.class_names = [name.replace("_", " ") for name in names]
        self.background = names.index(BACKGROUND) if BACKGROUND in names else 0
        super().__init__(root, limit)
        self.fingerprint = hashlib.sha256((self.fingerprint + text).encode(errors="surrogateescape")).hexdigest()

    def num_frames(self, row: Mapping[str, str]) -> int:
        """The number of a video's frames; 1 for a row with another label, which `item` refuses."""
        return NUM_FRAMES.get(row["label"], 1)

    def item(self, number: int, frame: int, video: str, row: Mapping[str, str]) -> Frame:
        """The files of a frame; they are numbered from 0 on."""
        if row["label"] not in NUM_FRAMES:
            raise DataError(f"label is {shown(row['label'])}; one of {', '.join(NUM_FRAMES)} is expected")
        folder = f"{checked_name('label', row['label'])}/{video}"
        files = f"{folder}/frames/{frame - 1}.jpg", f"{folder}/labels_rgb/{frame - 1}.png", f"{folder}/audio.wav"
        return Frame(number, video, frame, *files)

    def truth(self, labels: Image.Image, name: str) -> dict[str, Array]:
        """The class of each pixel, `[224, 224]`."""
        codes = _codes(np.asarray(labels.convert("RGB")))
        known = _codes(metric.palette(len(self.class_names)))
        order = np.argsort(known)
        found = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        wrong = np.argwhere(known[found] != codes)
        if len(wrong):
            color = np.asarray(labels.convert("RGB"))[tuple(wrong[0])].tolist()
            raise DataError(f"{name} holds the color {color}; those of {len(known)} classes are expected")
        return {"labels": found}

    def probe(self, case: Case, maps: Mapping[str, Array], embeddings: Tensor, encoder: Encoder) -> Mapping[str, Array]:
        """The class, other than the background, whose name is closest to the sound."""
        similarity = encoder.classes.float() @ embeddings[0].float()
        similarity[self.background] = -np.inf
        return {"class": similarity.argmax().cpu().numpy()}

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """Pixels of each class, in the frame and in each method's mask, and what the report needs."""
        labels, count = case.truth["labels"], len(self.class_names)
        other = labels != self.background
        measured = {
            "background": np.array(self.background),
            "pixels": np.bincount(labels.ravel(), minlength=count),
            "mask": np.packbits(other),
        }
        for name, raw in maps.items():
            mask = self._heatmap(raw[0]) > 0.5
            measured[f"inside {name}"] = np.bincount(labels[mask], minlength=count)
            measured[f"iou {name}"] = np.array(metric.frame_iou(mask, other))
            measured[f"map {name}"] = raw[0]
        return measured

    @classmethod
    def _sums(cls, measures: Measures, method: str) -> tuple[Array, Array]:
        """Of each video the sums of `semantic_sums` `[V, 3, C]`; those of the binary IoU, of the frames that show the
        class, and of all frames, `[V, 3]`."""
        videos, first = measures.groups("image")
        classes = len(measures.take("pixels", np.array([0]))[0])
        background = int(measures.take("background", np.array([0]))[0])
        semantic, others, start = np.zeros((len(first), 3, classes)), np.zeros((len(first), 3)), 0
        names = ("pixels", f"inside {method}", "class", f"iou {method}")
        for pixels, inside, own, iou in zip(*(measures.stream(name) for name in names), strict=True):
            counts = np.stack([np.zeros_like(pixels), np.zeros_like(pixels), pixels], axis=1)
            rows, area = np.arange(len(pixels)), inside.sum(axis=1)
            counts[rows, 0, own], counts[rows, 1, own] = inside[rows, own], area
            counts[:, 0, background] = pixels[:, background] - inside[:, background]
            counts[:, 1, background] = pixels.sum(axis=1) - area
            scores, f_scores, seen = metric.semantic_scores(counts)
            groups = videos[start : start + len(rows)]
            np.add.at(semantic, groups, np.stack([scores * seen, f_scores * seen, seen], axis=1))
            np.add.at(others, groups, np.stack([iou, pixels[rows, own] > 0, np.ones(len(rows))], axis=1))
            start += len(rows)
        return semantic, others

    @classmethod
    def _figures(cls, semantic: Array, others: Array, background: int) -> dict[str, float]:
        return {
            **metric.semantic_figures(semantic, background),
            "binary_iou": float(others[0] / others[2]),
            "class_accuracy": float(others[1] / others[2]),
        }

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each method."""
        background = int(measures.take("background", np.array([0]))[0])
        rows = []
        for method in measures.all_methods:
            semantic, others = cls._sums(measures, method)
            rows.append(Row(method, {}, cls._figures(semantic.sum(axis=0), others.sum(axis=0), background)))
        return rows

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Sums over the frames of each video."""
        semantic, others = cls._sums(measures, row.method)
        background = int(measures.take("background", np.array([0]))[0])

        def figures(weights: Array) -> dict[str, Array]:
            sums = np.einsum("rv,vkc->rkc", weights, semantic), weights @ others
            draws = [cls._figures(*pair, background) for pair in zip(*sums, strict=True)]
            return {name: np.array([draw[name] for draw in draws]) for name in cls.columns}

        return figures


def _codes(colors: Array) -> Array:
    """One number for each color, `[...]` from `[..., 3]`."""
    red, green, blue = np.moveaxis(colors.astype(np.int64), -1, 0)
    codes: Array = red << 16 | green << 8 | blue
    return codes


def _class_names(path: Path, text: str) -> list[str]:
    """The classes in the order of their numbers."""
    try:
        found: Any = json.loads(text)
        names = sorted(found, key=found.__getitem__)
        numbers = [found[name] for name in names]
    except (ValueError, TypeError, AttributeError, RecursionError):
        names, numbers = [], []
    if (
        not all(isinstance(number, int) for number in numbers)
        or numbers != list(range(len(names)))
        or not 2 <= len(names) <= MAX_CLASSES
        or not all(map(is_text, names))
    ):
        raise DataError(
            f"{shown(str(path))} cannot be used; a JSON object that numbers 2 to {MAX_CLASSES} classes from 0 on is "
            "expected"
        )
    return names
