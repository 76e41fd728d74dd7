"""IS3 and VPO: several sounds per image, each with its own box (Senocak et al., 2024), by the rule of SSL alignment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np

from eval.metrics import sound_source as ss
from eval.reading import read_records
from eval.sound_source import SoundItem, SoundSource, checked_base_name, checked_boxes
from eval.store import Measures
from eval.task import Array, Resampler, Row, task


class Interactive(SoundSource):
    """Several sounds per image: an image counts for IIoU if all of them are localized.

    Attributes:
        annotations: name of the list of records.
        frames: folder of the images.
        named: whether the last part of an image's name is the class of the sound.
    """

    measures = "cIoU and interactive IoU of each of several sounding objects"
    rule = ss.RULES["ssl-alignment"]
    columns: ClassVar[Mapping[str, str]] = {
        **SoundSource.columns,
        "iiou": "IIoU@0.5",
        "iauc": "IAUC",
        "iiou_adaptive": "adaptive IIoU@0.5",
        "iauc_adaptive": "adaptive IAUC",
    }
    annotations: ClassVar[str]
    frames: ClassVar[str]
    named: ClassVar[bool] = False

    def rows(self) -> list[Mapping[str, Any]]:
        """The records."""
        return read_records(self.root / "metadata" / self.annotations)

    def item(self, number: int, row: Any) -> SoundItem:
        """An item of its record; its image is the name without the last part, the sound's."""
        image, audio = (checked_base_name(field, row.get(field)) for field in ("image", "audio"))
        group, _, sound = PurePosixPath(image).stem.rpartition("_")
        boxes = checked_boxes(f"gt_box of {image}", [row.get("gt_box")] if row.get("gt_box") else [])
        name = sound if self.named else ""
        return SoundItem(number, group or sound, f"{self.frames}/{image}", f"audio_wav/{audio}", name, (boxes,))

    @classmethod
    def figures(cls, measures: Measures, method: str) -> dict[str, float]:
        """The figures of a method."""
        found = super().figures(measures, method)
        groups = measures.field("image").tolist()
        for suffix, values in zip(("", "_adaptive"), measures.take(f"score {method}").T[:2], strict=True):
            # a sound without a box and without a prediction is not localized
            known = np.nan_to_num(values)
            found[f"iiou{suffix}"] = ss.interactive_success(known, groups)
            found[f"iauc{suffix}"] = ss.interactive_auc(known, groups)
            found[f"iiou{suffix}_as_published"] = ss.interactive_success(values, groups)
            found[f"iauc{suffix}_as_published"] = ss.interactive_auc(values, groups)
        return found

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Interactive figures are means over images."""
        simple = super().resampler(measures, row)
        images, _ = measures.groups("image")
        scores = np.nan_to_num(measures.take(f"score {row.method}").T[:2])
        worst = np.full((2, images.max() + 1), np.inf)
        for own, values in zip(worst, scores, strict=True):
            np.minimum.at(own, images, values)
        by_image = {
            "iiou": worst[0] >= 0.5,
            "iauc": [ss.success_auc(np.array([value])) for value in worst[0]],
            "iiou_adaptive": worst[1] >= 0.5,
            "iauc_adaptive": [ss.success_auc(np.array([value])) for value in worst[1]],
        }

        def figures(weights: Array) -> dict[str, Array]:
            total = weights.sum(axis=1)
            interactive = {name: weights @ np.asarray(v, dtype=float) / total for name, v in by_image.items()}
            return {**simple(weights), **interactive}

        return figures


@task("is3")
class Is3(Interactive):
    """IS3: 3,240 generated images of two sounding objects."""

    source = "https://github.com/kaistmm/SSLalignment (generated images, VGGSound sounds; research use)"
    layout = """metadata/synthetic3240_bbox.json (image, audio, gt_box on 224 x 224)
images/*.jpg
audio_wav/*.wav"""
    annotations, frames, named = "synthetic3240_bbox.json", "images", True


@task("vpo-ss")
class VpoSs(Interactive):
    """VPO, one sounding object per image."""

    source = "https://github.com/kaistmm/SSLalignment, https://github.com/cyh-0/CAVP (COCO images, VGGSound sounds)"
    layout = """metadata/vpo_ss_bbox.json (image, audio, gt_box on 224 x 224)
visual_frames/*.jpg
audio_wav/*.wav"""
    annotations, frames = "vpo_ss_bbox.json", "visual_frames"


@task("vpo-ms")
class VpoMs(Interactive):
    """VPO, several sounding objects per image."""

    source = VpoSs.source
    layout = """metadata/vpo_ms_bbox.json (image, audio, gt_box on 224 x 224)
visual_frames/*.jpg
audio_wav/*.wav"""
    annotations, frames = "vpo_ms_bbox.json", "visual_frames"
