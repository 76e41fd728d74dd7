"""AVSBench (Zhou et al., ECCV 2022): masks of what sounds in video frames, of one source (S4) or several (MS3)."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from avgrad.engine.attribute import min_max, upsample
from avgrad.errors import MediaError
from avgrad.media import load_image, open_audio
from avgrad.video.sound import centered_window
from eval.metrics.avsbench import THRESHOLDS, f_curve, frame_iou
from eval.reading import as_stored, check_rows, checked_name, need_columns, read_bytes, read_table
from eval.store import Measures, unpack_masks
from eval.task import (
    Array,
    Case,
    DataError,
    Example,
    Inputs,
    Item,
    Modality,
    Published,
    Resampler,
    Row,
    Task,
    image_or_blank,
    spread,
    task,
)

NUM_FRAMES = 5  # of a video, one per second
_TACO = "arXiv 2412.01488"


@dataclass(frozen=True)
class Frame(Item):
    """A frame of a video; its image is the video, whose frames are resampled together.

    Attributes:
        frame: number, from 1 on; one per second.
        file, mask, audio: paths within the data set.
    """

    frame: int
    file: str
    mask: str
    audio: str


class AvsBench(Task):
    """What the sets share: the frames of each video of the test split.

    The prompt of a frame is the two seconds of sound around it. A heatmap, min-max normalized, stands in for the
    probabilities of the original.

    Attributes:
        table: path of the list of videos.
        key: the column of the video's name; the first one if empty.
        needed: columns of it besides the video and its split.
    """

    measures = "mIoU and F-score (beta^2 = 0.3) of what sounds in video frames"
    source = "https://github.com/OpenNLPLab/AVSBench (on request; videos from YouTube)"
    modalities: tuple[Modality, ...] = ("audio",)
    columns: ClassVar[Mapping[str, str]] = {"mean_iou": "mIoU", "f_score": "F-score"}
    table: ClassVar[str]
    key: ClassVar[str] = ""
    needed: ClassVar[tuple[str, ...]] = ()
    items: list[Frame]

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        self.root = Path(root)
        table = self.root / self.table
        columns, rows = read_table(table, read_bytes(table))
        need_columns(table, columns, ["split", *self.needed])
        frames = (
            (number, (row, frame))
            for number, row in enumerate(rows, start=1)
            if row["split"] == "test"
            for frame in range(1, self.num_frames(row) + 1)
        )
        key = self.key or columns[0]

        def make(number: int, row: tuple[Mapping[str, str], int]) -> Frame:
            return self.item(number, row[1], checked_name(key, row[0][key].strip()), row[0])

        self.items, self.problems, self.num_rows, self.fingerprint = check_rows(
            self.name, table, frames, make, self._paths, limit
        )

    def num_frames(self, row: Mapping[str, str]) -> int:
        """The number of a video's frames."""
        return NUM_FRAMES

    def _paths(self, item: Frame) -> list[Path]:
        return [self.root / name for name in (item.file, item.mask, item.audio)]

    @abstractmethod
    def item(self, number: int, frame: int, video: str, row: Mapping[str, str]) -> Frame:
        """The files of a frame."""

    def load(self, item: Frame, inputs: Inputs) -> Case:
        """Load an item."""
        paths = self._paths(item)
        try:
            image, labels = load_image(paths[0]), as_stored(paths[1])
            if abs(image.width * labels.height - image.height * labels.width) > image.width + image.height:
                raise DataError(
                    f"{item.file} has {image.width} x {image.height} pixels and {item.mask} {labels.width} x "
                    f"{labels.height}; the same proportions are expected"
                )
            truth = self.truth(labels.resize((self.side, self.side), Image.Resampling.NEAREST), item.mask)
            with open_audio(paths[2]) as audio:
                # around the middle of the frame's own second, as `avgrad.localize_video` does
                window = centered_window(item.frame - 0.5, inputs.sound.clip_seconds, audio.duration)
                clips = inputs.sound(audio, window)
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        return Case(inputs.image(self._square(image)), [clips], truth, digest.digest())

    def truth(self, labels: Image.Image, name: str) -> dict[str, Array]:
        """What is measured against, from the mask's image.

        Args:
            labels: as stored, resized to the square.
            name: of its file, for messages.

        Raises:
            DataError: it holds something else than expected.
        """
        return {"mask": np.asarray(labels.convert("L")) > 127}

    def _square(self, image: Image.Image) -> Image.Image:
        return image.resize((self.side, self.side), Image.Resampling.BILINEAR)

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """IoU and F-score curve of the frame by each method, the mask and the raw maps for the report."""
        mask = case.truth["mask"]
        measured: dict[str, Array] = {"mask": np.packbits(mask)}
        for name, raw in maps.items():
            heatmap = self._heatmap(raw[0])
            measured[f"iou {name}"] = np.array(frame_iou(heatmap > 0.5, mask))
            measured[f"curve {name}"] = f_curve(heatmap, mask)
            measured[f"map {name}"] = raw[0]
        return measured

    @classmethod
    def _heatmap(cls, raw: Array) -> Array:
        large = upsample(torch.from_numpy(raw)[None, None], (cls.side, cls.side))
        heatmap: Array = min_max(large)[0, 0].numpy()
        return heatmap

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each method, with its mean F-score over thresholds as a curve."""
        videos, _ = measures.groups("image")
        rows = []
        for method in measures.all_methods:
            total, valid = cls._curves(measures, method, videos)
            best = np.divide(total, valid[:, None], out=np.zeros_like(total), where=valid[:, None] > 0).max(axis=1)
            figures = {
                "mean_iou": float(measures.take(f"iou {method}").mean()),
                "f_score": float((total.sum(axis=0) / max(valid.sum(), 1)).max()),
                "f_score_as_published": float(best.mean()),
            }
            rows.append(Row(method, {}, figures))
        return rows

    @classmethod
    def _curves(cls, measures: Measures, method: str, videos: Array) -> tuple[Array, Array]:
        """Of each video the sum of its frames' F-score curves `[V, 255]`, and the number of frames with one `[V]`."""
        count = int(videos.max()) + 1
        total, valid, start = np.zeros((count, len(THRESHOLDS))), np.zeros(count), 0
        for curves in measures.stream(f"curve {method}"):
            own = videos[start : start + len(curves)]
            filled = ~np.isnan(curves).any(axis=1)
            np.add.at(total, own[filled], curves[filled])
            np.add.at(valid, own[filled], 1)
            start += len(curves)
        return total, valid

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Sums of IoU and of curves over the frames of each video."""
        videos, _ = measures.groups("image")
        total, valid = cls._curves(measures, row.method, videos)
        frames, iou = (np.bincount(videos, weights) for weights in (None, measures.take(f"iou {row.method}")))

        def figures(weights: Array) -> dict[str, Array]:
            mean = weights @ total / np.maximum(weights @ valid, 1)[:, None]
            return {"mean_iou": weights @ iou / (weights @ frames), "f_score": mean.max(axis=1)}

        return figures

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """Frames from the highest IoU to the lowest."""
        for position in spread(measures.take(f"iou {row.method}")):
            chosen = np.array([position])
            fields = measures.items[int(position)]
            image = self._square(image_or_blank(partial(load_image, self.root / fields["file"]), self.side))
            mask = unpack_masks(measures.take("mask", chosen), self.side)[0]
            maps = {name: self._heatmap(measures.take(f"map {name}", chosen)[0]) for name in measures.methods}
            yield Example(f"{fields['image']}, frame {fields['frame']}", image, mask, maps)


def _published(name: str, mean_iou: float, f_score: float, masks: bool = False) -> Published:
    return Published(name, {"mean_iou": mean_iou, "f_score": f_score}, _TACO, masks)


@task("avsbench-s4")
class AvsBenchS4(AvsBench):
    """AVSBench S4: one sounding object per video."""

    layout = """Single-source/s4_meta_data.csv (video, start, category, split)
Single-source/s4_data/visual_frames/test/CATEGORY/VIDEO/VIDEO_{1..5}.png
Single-source/s4_data/gt_masks/test/CATEGORY/VIDEO/VIDEO_{1..5}.png
Single-source/s4_data/audio_wav/test/CATEGORY/VIDEO.wav"""
    published = (_published("TACO, maps alone", 29.68, 41.91), _published("TACO, with decoder", 64.04, 71.50, True))
    table = "Single-source/s4_meta_data.csv"
    needed = ("category",)

    def item(self, number: int, frame: int, video: str, row: Mapping[str, str]) -> Frame:
        """The files of a frame."""
        root, folder = "Single-source/s4_data", f"test/{checked_name('category', row['category'].strip())}"
        return Frame(
            number,
            video,
            frame,
            f"{root}/visual_frames/{folder}/{video}/{video}_{frame}.png",
            f"{root}/gt_masks/{folder}/{video}/{video}_{frame}.png",
            f"{root}/audio_wav/{folder}/{video}.wav",
        )


@task("avsbench-ms3")
class AvsBenchMs3(AvsBench):
    """AVSBench MS3: several sounding objects per video."""

    layout = """Multi-sources/ms3_meta_data.csv (video, split)
Multi-sources/ms3_data/visual_frames/VIDEO/VIDEO.mp4_{1..5}.png
Multi-sources/ms3_data/gt_masks/test/VIDEO/VIDEO_{1..5}.png
Multi-sources/ms3_data/audio_wav/test/VIDEO.wav"""
    published = (_published("TACO, maps alone", 25.88, 30.72), _published("TACO, with decoder", 43.15, 47.5, True))
    table = "Multi-sources/ms3_meta_data.csv"

    def item(self, number: int, frame: int, video: str, row: Mapping[str, str]) -> Frame:
        """The files of a frame."""
        root = "Multi-sources/ms3_data"
        return Frame(
            number,
            video,
            frame,
            f"{root}/visual_frames/{video}/{video}.mp4_{frame}.png",
            f"{root}/gt_masks/test/{video}/{video}_{frame}.png",
            f"{root}/audio_wav/test/{video}.wav",
        )
