"""Synthetic videos: which object makes the sound now?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avgrad.engine.attribute import min_max, upsample
from avgrad.errors import MediaError
from avgrad.media import Video, open_video
from avgrad.media.video import FrameReader, frames_at, ticks, upright
from avgrad.scenes.layouts.video import INDEX
from avgrad.video.sound import SoundWindows, centered_window
from eval.encoder import Encoder
from eval.metrics.prompted_segmentation import score_class
from eval.metrics.video import area_under_roc, frame_ious
from eval.reading import check_rows, checked_name, read_records
from eval.store import Measures, unpack_masks
from eval.task import Array, Case, DataError, Example, Inputs, Item, Resampler, Row, Task, task

FPS = 2.0  # frames that are evaluated, per second
STATES = ("one", "several", "silence", "off-screen")  # what sounds in a frame
NUM_EXAMPLES = 8


@dataclass(frozen=True)
class Frame(Item):
    """A frame of a video; its image is the video, whose frames are resampled together.

    Attributes:
        number: of the frame, at `number / FPS` seconds.
        truth: path of the truth within the data set.
        segments: start, end, and the names of what sounds on screen.
    """

    number: int
    truth: str
    segments: list[list[Any]]

    @property
    def time(self) -> float:
        """In seconds."""
        return self.number / FPS


@task("video-scenes")
class VideoScenes(Task):
    """Synthetic videos by `avgrad scenes OUT --layout video`, two frames per second.

    The prompt of a frame is the video's own sound around it, as in `avgrad.localize_video`. Frames in which objects on
    screen sound are measured against the mask of these; IoU at the one of 20 thresholds that is best for all frames.
    Scores of these frames are compared with those of frames in whose whole window nothing on screen sounds.
    """

    measures = "IoU, AP and peak against the mask of what sounds; ROC-AUC of scores against absence"
    source = "avgrad scenes OUT --layout video --n 100"
    layout = f"{INDEX}\nvideos/NAME.mp4, truth/NAME.npz"
    modalities = ("audio",)
    columns: ClassVar[Mapping[str, str]] = {
        "mean_iou": "mIoU",
        "mean_average_precision": "mAP",
        "right_object": "right object",
        "mean_iou_several": "mIoU, several",
        "auc_silence": "AUC, silence",
        "auc_offscreen": "AUC, off-screen",
        "auc_every_frame": "AUC, every frame",
    }
    items: list[Frame]

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        self.root = Path(root)
        entries = enumerate(read_records(self.root / INDEX), start=1)
        rows = ((number, (entry, frame)) for number, entry in entries for frame in range(_num_frames(entry)))
        self.items, self.problems, self.num_rows, self.fingerprint = check_rows(
            self.name, self.root / INDEX, rows, _item, self._paths, limit
        )

    def _paths(self, item: Frame) -> list[Path]:
        return [self.root / item.image, self.root / item.truth]

    def load(self, item: Frame, inputs: Inputs) -> Case:
        """Load an item."""
        try:
            video = open_video(self.root / item.image)
            image = _frame(video, item.number)
            windows = SoundWindows(video, inputs.sound, start=item.time)
            try:
                window = windows.at(item.time)
            finally:
                windows.close()
            with np.load(self.root / item.truth, allow_pickle=False) as file:
                shown = int(np.searchsorted(file["times"], item.time + 1e-6, side="right")) - 1
                labels, sounding = file["labels"][shown], file["sounding"][shown]
            digest = hashlib.sha256((self.root / item.image).read_bytes() + labels.tobytes() + sounding.tobytes())
        except (MediaError, OSError, ValueError, KeyError, IndexError) as error:
            raise DataError(f"{item.image}: {error}") from error
        silent = window is None
        samples = torch.zeros(1, round(inputs.sound.clip_seconds * inputs.sound.sample_rate))
        clip = inputs.sound.clip(samples if window is None else window)
        size = (self.side, self.side)
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        sources = np.flatnonzero(sounding[:-1]) + 1
        begin, end = centered_window(item.time, inputs.sound.clip_seconds, video.duration)
        heard = any(names and start < end and stop > begin for start, stop, names in item.segments)
        state = min(len(sources), 2) - 1 if len(sources) else (3 if sounding[-1] else 2)
        truth = {
            "mask": np.isin(labels, sources),
            "others": (labels > 0) & ~np.isin(labels, sources),
            "state": np.array(state),
            "heard": np.array(heard),
            "silent": np.array(silent),
        }
        return Case(inputs.image.whole(image), [clip], truth, digest.digest())

    def probe(self, case: Case, maps: Mapping[str, Array], embeddings: Tensor, encoder: Encoder) -> Mapping[str, Array]:
        """The score of the frame and its sound; -1 for silence."""
        pixels = case.pixels[None].to(encoder.model.device, encoder.model.dtype)
        score = float(encoder.model.encode_image(pixels)[0].cpu() @ embeddings[0].cpu())
        return {"score": np.array(-1.0 if case.truth["silent"] else score)}

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """The state of the frame; by each method IoU, AP, where the peak is, and the map."""
        mask, others = case.truth["mask"], case.truth["others"]
        measured: dict[str, Array] = {
            "state": case.truth["state"],
            "heard": case.truth["heard"],
            "mask": np.packbits(mask),
        }
        for name, raw in maps.items():
            heatmap = self._heatmap(raw[0])
            peak = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
            usable = bool(mask.any())
            measured[f"iou {name}"] = frame_ious(heatmap, mask) if usable else np.full(20, np.nan)
            measured[f"ap {name}"] = np.array(score_class(heatmap[None], mask[None]).average_precision)
            measured[f"peak {name}"] = np.array([mask[peak], others[peak]])
            measured[f"map {name}"] = raw[0]
        return measured

    @classmethod
    def _heatmap(cls, raw: Array) -> Array:
        heatmap: Array = min_max(upsample(torch.from_numpy(raw)[None, None], (cls.side, cls.side)))[0, 0].numpy()
        return heatmap

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each method."""
        everything = np.arange(len(measures))
        return [Row(m, {}, cls._figures(cls._arrays(measures, m), everything)) for m in measures.all_methods]

    @classmethod
    def _arrays(cls, measures: Measures, method: str) -> dict[str, Array]:
        common = {name: measures.take(name) for name in ("score", "state", "heard")}
        return {**common, **{name: measures.take(f"{name} {method}") for name in ("iou", "ap", "peak")}}

    @classmethod
    def _figures(cls, arrays: Mapping[str, Array], chosen: Array, best: int | None = None) -> dict[str, float]:
        """The figures of some frames, which may be given several times; `best` is the threshold, the best if None."""
        own = {name: values[chosen] for name, values in arrays.items()}
        state, score, visible = own["state"], own["score"], ~np.isnan(own["ap"])
        one, sounding = (state == 0) & visible, (state < 2) & visible
        best = int(own["iou"][sounding].mean(0).argmax()) if best is None and sounding.any() else best or 0
        clear = ~own["heard"]

        def mean(values: Array) -> float:
            return float(values.mean()) if len(values) else float("nan")

        return {
            "mean_iou": mean(own["iou"][sounding, best]),
            "mean_average_precision": mean(own["ap"][sounding]),
            "right_object": mean(own["peak"][one, 0]),
            "other_object": mean(own["peak"][one, 1]),
            "mean_iou_one": mean(own["iou"][one, best]),
            "mean_iou_several": mean(own["iou"][(state == 1) & visible, best]),
            "auc_silence": area_under_roc(score[state < 2], score[clear & (state == 2)]),
            "auc_offscreen": area_under_roc(score[state < 2], score[clear & (state == 3)]),
            "auc_every_frame": area_under_roc(score[state < 2], score[state >= 2]),
            "threshold": best / 20,
        }

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """The figures of the frames of drawn videos, at the row's threshold."""
        videos, _ = measures.groups("image")
        arrays, best = cls._arrays(measures, row.method), round(row.figures["threshold"] * 20)

        def figures(weights: Array) -> dict[str, Array]:
            frames = np.arange(len(videos))
            draws = [cls._figures(arrays, np.repeat(frames, own[videos].astype(int)), best) for own in weights]
            return {name: np.array([draw[name] for draw in draws]) for name in cls.columns}

        return figures

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """Frames with a source, from the highest AP to the lowest."""
        precision = measures.take(f"ap {row.method}")
        order = [int(place) for place in np.argsort(-precision, kind="stable") if not np.isnan(precision[place])]
        for place in np.unique(np.linspace(0, len(order) - 1, min(NUM_EXAMPLES, len(order))).round().astype(int)):
            chosen = np.array([order[place]])
            fields = measures.items[order[place]]
            try:
                image = _frame(open_video(self.root / fields["image"]), fields["number"]).resize((self.side, self.side))
            except MediaError:  # the data may have been removed since
                image = Image.new("RGB", (self.side, self.side), "white")
            mask = unpack_masks(measures.take("mask", chosen), self.side)[0]
            maps = {name: self._heatmap(measures.take(f"map {name}", chosen)[0]) for name in measures.methods}
            yield Example(f"{fields['image']}, {fields['number'] / FPS:.1f} s", image, mask, maps)


def _num_frames(entry: Mapping[str, Any]) -> int:
    """How many frames of a video are evaluated; one where its entry cannot be used, so that it is reported."""
    try:
        return ticks(min(float(entry["segments"][-1]["end"]), 3600.0), FPS)
    except (KeyError, TypeError, IndexError, ValueError):
        return 1


def _item(number: int, row: tuple[Mapping[str, Any], int]) -> Frame:
    entry, frame = row
    try:
        segments = [[float(s["start"]), float(s["end"]), list(s["sounding"])] for s in entry["segments"]]
        video, truth = str(entry["video"]), str(entry["truth"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"video, truth or segments cannot be used ({error!r})") from None
    return Frame(number, checked_name("video", video), frame, checked_name("truth", truth), segments)


def _frame(video: Video, number: int) -> Image.Image:
    """The image that is shown at `number / FPS` seconds.

    Raises:
        MediaError: the video ends before.
    """
    with FrameReader(video, number / FPS) as frames:
        for _, frame in frames_at(frames, FPS, number):
            return upright(frame, video)
    raise MediaError(f"{video.name} ends before {number / FPS:.1f} s")
