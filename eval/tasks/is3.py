"""IS3 and VPO: several sounds per image, each with its own box and segmentation, by the rule of SSL alignment.

Senocak et al., Aligning Sight and Sound, arXiv 2407.13676.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from avgrad.errors import MediaError
from eval.metrics import sound_source as ss
from eval.reading import as_stored, read_records
from eval.sound_source import SoundItem, SoundSource, checked_base_name, checked_boxes
from eval.store import Measures
from eval.task import Array, Case, DataError, Inputs, ProblemKind, Resampler, Row, task


@dataclass(frozen=True)
class MaskedItem(SoundItem):
    """A sound in an image with a segmentation.

    Attributes:
        mask: path of the segmentation within the data set; empty if there is none.
    """

    mask: str


class Interactive(SoundSource):
    """Several sounds per image: an image counts for IIoU if all of them are localized.

    Every sound is measured against its box and, where the list of segmentations is there, against its segmentation.
    The original has these lists but no code that reads the masks: resized to the square by the nearest pixel, what is
    brighter than half of white belongs to the object.

    Attributes:
        annotations: name of the list of boxes.
        segmentations: name of the list of segmentations.
        frames: folder of the images.
        masks: folders of the segmentations; the first one that exists is used.
        named: whether the last part of an image's name is the class of the sound.
    """

    measures = "cIoU and interactive IoU of each of several sounding objects, against boxes and segmentations"
    rule = ss.RULES["ssl-alignment"]
    columns: ClassVar[Mapping[str, str]] = {
        **SoundSource.columns,
        "iiou": "IIoU@0.5",
        "iauc": "IAUC",
        "iiou_adaptive": "adaptive IIoU@0.5",
        "iauc_adaptive": "adaptive IAUC",
    }
    annotations: ClassVar[str]
    segmentations: ClassVar[str]
    frames: ClassVar[str]
    masks: ClassVar[tuple[str, ...]] = ("gray_masks",)
    named: ClassVar[bool] = False
    item_type = MaskedItem

    def rows(self) -> list[Mapping[str, Any]]:
        """The records."""
        path = self.root / "metadata" / self.segmentations
        self._segmentations = None
        if path.exists():
            folders = [folder for folder in self.masks if (self.root / folder).is_dir()]
            self._mask_folder = folders[0] if folders else self.masks[0]
            self._segmentations = {_stem(record.get("image")): record.get("gt_box") for record in read_records(path)}
        return read_records(self.root / "metadata" / self.annotations)

    def item(self, number: int, row: Any) -> MaskedItem:
        """An item of its record; its image is the name without the last part, the sound's."""
        image, audio = (checked_base_name(field, row.get(field)) for field in ("image", "audio"))
        stem = _stem(image)
        group, _, sound = stem.rpartition("_")
        boxes = checked_boxes(f"gt_box of {image}", [row.get("gt_box")] if row.get("gt_box") else [])
        name, mask = sound if self.named else "", ""
        if self._segmentations is not None:
            if stem not in self._segmentations:
                raise DataError(f"{self.segmentations} has no record of {image}; one for each box is expected")
            file = checked_base_name(f"gt_box of {image} in {self.segmentations}", self._segmentations[stem])
            mask = f"{self._mask_folder}/{file}"
        return MaskedItem(number, group or sound, f"{self.frames}/{image}", f"audio_wav/{audio}", name, (boxes,), mask)

    def _paths(self, item: Any) -> list[Path]:
        return [*super()._paths(item), *([self.root / item.mask] if item.mask else [])]

    def load(self, item: Any, inputs: Inputs) -> Case:
        """Load an item with its segmentation."""
        case = super().load(item, inputs)
        if not item.mask:
            return case
        path = self.root / item.mask
        try:
            stored = as_stored(path).convert("L").resize((self.side, self.side), Image.Resampling.NEAREST)
            digest = hashlib.sha256(case.digest + path.read_bytes()).digest()
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        mask = np.asarray(stored) > 127
        problems: list[tuple[ProblemKind, str]] = []
        if not mask.any():
            problems.append(("no pixels", f"{item.mask} marks no pixel"))
        return replace(case, truth={**case.truth, "mask": mask}, digest=digest, problems=problems)

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """What the other tasks keep, and the same against the segmentation."""
        measured = dict(super().measure(case, maps))
        if "mask" in case.truth:
            measured |= {f"mask score {name}": self._score(raw[:1], case.truth["mask"]) for name, raw in maps.items()}
        return measured

    @classmethod
    def variants(cls, measures: Measures) -> list[dict[str, str]]:
        """Both truths, or the boxes alone."""
        truths = ("box", "segmentation") if measures.items[0]["mask"] else ("box",)
        return [{"truth": truth} for truth in truths]

    @classmethod
    def scores(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> Array:
        """cIoU, adaptive cIoU and confidence of each item, `[N, 3]`."""
        return measures.take(f"mask score {method}" if variant["truth"] == "segmentation" else f"score {method}")

    @classmethod
    def figures(cls, measures: Measures, method: str, variant: Mapping[str, str]) -> dict[str, float]:
        """The figures of a method."""
        found = super().figures(measures, method, variant)
        groups = measures.groups("image")[0].tolist()
        for suffix, values in zip(("", "_adaptive"), cls.scores(measures, method, variant).T[:2], strict=True):
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
        scores = np.nan_to_num(cls.scores(measures, row.method, row.variant).T[:2])
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


def _stem(image: Any) -> str:
    """The name of an image without its folder and extension."""
    return PurePosixPath(str(image)).stem


@task("is3")
class Is3(Interactive):
    """IS3: 3,240 generated images of two sounding objects."""

    source = "https://github.com/kaistmm/SSLalignment (lists in its metadata/; the README links the data)"
    layout = """metadata/synthetic3240_bbox.json (image, audio, gt_box: box on 224 x 224)
metadata/synthetic3240_seg.json (image, gt_box: mask; optional)
images/IMAGE.jpg
audio_wav/IMAGE.wav
gt_segmentation/IMAGE.jpg (or gt_masks/)"""
    annotations, segmentations = "synthetic3240_bbox.json", "synthetic3240_seg.json"
    frames, masks, named = "images", ("gt_segmentation", "gt_masks"), True


@task("vpo-ss")
class VpoSs(Interactive):
    """VPO, one sounding object per image."""

    source = "https://github.com/cyh-0/CAVP (data); https://github.com/kaistmm/SSLalignment (lists in its metadata/)"
    layout = """metadata/vpo_ss_bbox.json (image, audio, gt_box: box on 224 x 224)
metadata/vpo_ss_seg.json (image, gt_box: mask; optional)
visual_frames/IMAGE.jpg
audio_wav/IMAGE.wav
gray_masks/IMAGE.jpg"""
    annotations, segmentations, frames = "vpo_ss_bbox.json", "vpo_ss_seg.json", "visual_frames"


@task("vpo-ms")
class VpoMs(Interactive):
    """VPO, several sounding objects per image."""

    source = VpoSs.source
    layout = VpoSs.layout.replace("vpo_ss", "vpo_ms")
    annotations, segmentations, frames = "vpo_ms_bbox.json", "vpo_ms_seg.json", "visual_frames"
