"""Synthetic scenes: how well a model localizes objects by sounds, spoken names and texts that training never drew."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from avgrad.media import open_audio
from avgrad.models.devices import cpu_threads
from avgrad.scenes import CLASSES, SAMPLE_RATE, draw_scene, mix_sound, scene_rng, spoken, texts
from avgrad.scenes.images import MAX_OBJECTS, OBJECTS_PROBABILITIES, Scene
from eval.encoder import Encoder, Prompt
from eval.metrics.prompted_segmentation import (
    ClassScore,
    SegmentationScore,
    heatmap_parts,
    normalized_heatmaps,
    score_parts,
)
from eval.metrics.resampling import ClassCounts, mean_over_classes
from eval.store import Measures, unpack_masks
from eval.task import Array, Case, DataError, Example, Inputs, Item, Modality, Resampler, Row, Task, task

PROMPTS: dict[str, Modality] = {"sound": "audio", "speech": "audio", "text": "text"}
NUM_SCENES = 500  # by default, and of a block of scores
NUM_EXAMPLES = 8
BLOB = "central blob"


@dataclass(frozen=True)
class SceneItem(Item):
    """A scene.

    Attributes:
        objects: number of its objects.
        first: number of its first object among those of all scenes.
    """

    objects: int
    first: int


def scene_items(seed: int, number: int) -> list[SceneItem]:
    """The scenes of a seed, as far as they are known before they are drawn."""
    items: list[SceneItem] = []
    for index in range(number):
        objects = 1 + int(scene_rng("evaluation", seed, index).choice(MAX_OBJECTS, p=OBJECTS_PROBABILITIES))
        first = items[-1].first + items[-1].objects if items else 0
        items.append(SceneItem(index + 1, f"scene {index}", objects, first))
    return items


def evaluation_scene(seed: int, item: SceneItem, size: int) -> Scene:
    """A scene of the series that training never draws."""
    return draw_scene(scene_rng("evaluation", seed, item.row - 1), size)


def scene_prompt(kind: str, seed: int, number: int, object_class: int, inputs: Inputs) -> Prompt:
    """A held-out prompt for an object.

    Args:
        kind: in `PROMPTS`.
        seed: of the scenes.
        number: of the object among those of all scenes.
        object_class: its class.
        inputs: of the model.
    """
    rng = scene_rng(f"evaluation {kind}", seed, number)
    if kind == "text":
        choices = texts(object_class, "heldout")
        return choices[int(rng.integers(len(choices)))]
    if kind == "sound":
        others = [k for k in rng.permutation(len(CLASSES)).tolist() if k != object_class][: int(rng.integers(0, 3))]
        waveform = mix_sound(object_class, rng, float(rng.uniform(3, 6)), others, SAMPLE_RATE)
    else:
        waveform = spoken(object_class, rng, "heldout").waveform
    return inputs.sound(open_audio((waveform, SAMPLE_RATE)))


@task("scenes")
class Scenes(Task):
    """Prompted segmentation of synthetic scenes, and the ROC-AUC of scores of present against absent objects.

    Heatmaps are min-max normalized per image. Scores are compared among the prompts and images of 500 scenes at a time.
    "central blob" is a Gaussian in the center, whatever image and prompt are.

    Args:
        root: None, as there are no data.
        limit: number of scenes; None for 500.
        seed: of scenes and prompts.
        prompts: kinds of prompts, separated by "+".

    Raises:
        DataError: there is a folder, or an option is out of range.
    """

    measures = "mAP and mIoU over classes for prompts of objects in synthetic scenes; ROC-AUC of scores"
    source = "synthetic; made on the way"
    layout = "none"
    modalities: tuple[Modality, ...] = ("audio", "text")
    needs_data = False
    options: ClassVar[Mapping[str, str | int]] = {"seed": 1, "prompts": "sound+speech+text"}
    columns: ClassVar[Mapping[str, str]] = {
        "mean_average_precision": "mAP",
        "mean_iou": "mIoU",
        "roc_auc": "ROC-AUC of scores",
    }
    side = 128
    items: list[SceneItem]

    def __init__(
        self,
        root: str | Path | None = None,
        limit: int | None = None,
        seed: int = 1,
        prompts: str = "sound+speech+text",
    ) -> None:
        if root is not None:
            raise DataError(f"{self.name} makes its own data; leave out --data {root}")
        self.kinds = tuple(prompts.split("+"))
        if not set(self.kinds) <= set(PROMPTS) or len(set(self.kinds)) != len(self.kinds) or seed < 0:
            raise DataError(f"seed={seed}, prompts={prompts!r}; 0 or more and some of sound+speech+text are expected")
        self.modalities = tuple(dict.fromkeys(PROMPTS[kind] for kind in self.kinds))
        self.seed, self.chosen = seed, {"seed": seed, "prompts": prompts}
        self.items = scene_items(seed, limit or NUM_SCENES)
        self.problems, self.num_rows = [], len(self.items)
        self.fingerprint = hashlib.sha256(json.dumps([seed, prompts, len(self.items)]).encode()).hexdigest()

    def load(self, item: SceneItem, inputs: Inputs) -> Case:
        """Draw a scene and make its prompts: of all objects the first kind, then the second."""
        scene = evaluation_scene(self.seed, item, self.side)
        prompts = [
            scene_prompt(kind, self.seed, item.first + place, object_class, inputs)
            for kind in self.kinds
            for place, object_class in enumerate(scene.classes)
        ]
        truth = {"masks": scene.masks, "classes": np.array(scene.classes)}
        digest = hashlib.sha256(scene.image.tobytes()).digest()
        return Case(inputs.image.whole(Image.fromarray(scene.image)), prompts, truth, digest)

    def probe(self, case: Case, maps: Mapping[str, Array], embeddings: Tensor, encoder: Encoder) -> Mapping[str, Array]:
        """Embeddings of the image `[D]` and of the prompts `[kinds, 4, D]`, which scores are products of."""
        image = encoder.model.encode_image(case.pixels[None].to(embeddings.device))[0]
        own = embeddings.unflatten(0, (len(self.kinds), -1))
        return {"image": image.float().cpu().numpy(), "prompts": _padded(own.float().cpu().numpy())}

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """Classes and masks of the objects, and the raw maps `[kinds, 4, gh, gw]`."""
        masks = np.packbits(case.truth["masks"].reshape(len(case.truth["masks"]), -1), axis=1)
        classes = np.full(MAX_OBJECTS, -1)
        classes[: len(masks)] = case.truth["classes"]
        shaped = {name: raw.reshape(len(self.kinds), -1, *raw.shape[1:]) for name, raw in maps.items()}
        return {
            "classes": classes,
            "masks": _padded(masks[None])[0],
            **{f"map {name}": _padded(raw) for name, raw in shaped.items()},
        }

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each kind of prompt and method, and one of the central blob."""
        classes = measures.take("classes")
        kinds = cls._kinds(measures)
        with cpu_threads(1), ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = []
            for place, kind in enumerate(kinds):
                score = cls._roc_auc(measures, classes, place)  # of all methods
                for method in measures.all_methods:
                    rows.append(cls._row(pool, measures, classes, method, kind, place, score))
                    score = math.nan
            return [*rows, cls._row(pool, measures, classes, BLOB, "none", 0, math.nan)]

    @classmethod
    def _kinds(cls, measures: Measures) -> list[str]:
        return str(measures.manifest["options"]["prompts"]).split("+")

    @classmethod
    def _row(
        cls,
        pool: ThreadPoolExecutor,
        measures: Measures,
        classes: Array,
        method: str,
        kind: str,
        place: int,
        roc_auc: float,
    ) -> Row:
        present = [int(number) for number in np.unique(classes) if number >= 0]

        def score(number: int) -> ClassScore:
            raw, masks, _ = cls._class(measures, classes, method, place, number)
            return score_parts(heatmap_parts(raw, masks, "image", cls.side))

        found = SegmentationScore(dict(zip(present, pool.map(score, present), strict=True)))
        return Row(
            method,
            {"prompt": kind},
            {
                "mean_average_precision": found.mean_average_precision,
                "mean_iou": found.mean_iou,
                "roc_auc": roc_auc,
            },
            details=[
                {
                    "class_name": CLASSES[number].name,
                    "images": own.num_images,
                    "average_precision": own.average_precision,
                    "iou": own.iou,
                }
                for number, own in found.classes.items()
            ],
        )

    @classmethod
    def _class(
        cls, measures: Measures, classes: Array, method: str, place: int, number: int
    ) -> tuple[Array, Array, Array]:
        """Raw maps `[n, gh, gw]`, packed masks `[n, bytes]` and scenes `[n]` of the objects of a class."""
        scenes, objects = np.nonzero(classes == number)
        every = np.arange(len(scenes))
        masks = measures.take("masks", scenes)[every, objects]
        if method == BLOB:
            return np.broadcast_to(central_blob(cls.side), (len(scenes), cls.side, cls.side)), masks, scenes
        return measures.take(f"map {method}", scenes)[every, place, objects], masks, scenes

    @classmethod
    def _roc_auc(cls, measures: Measures, classes: Array, place: int) -> float:
        """The mean over blocks of scenes."""
        values = []
        blocks = zip(measures.stream("image", NUM_SCENES), measures.stream("prompts", NUM_SCENES), strict=True)
        for block, (images, prompts) in enumerate(blocks):
            own = classes[block * NUM_SCENES :][: len(images)]
            scores = torch.from_numpy(images @ prompts[:, place][own >= 0].T)
            shown = np.stack([(own == number).any(1) for number in range(len(CLASSES))], axis=1)
            values.append(float(binary_auroc(scores, torch.from_numpy(shown[:, own[own >= 0]]))))
        return float(np.mean(values))

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Exact but for average precision, which comes from binned scores (`eval.metrics.resampling`)."""
        classes, counts = measures.take("classes"), []
        place = cls._kinds(measures).index(row.variant["prompt"])
        for number in np.unique(classes[classes >= 0]):
            raw, masks, scenes = cls._class(measures, classes, row.method, place, int(number))
            maps, truth = (np.concatenate(a) for a in zip(*heatmap_parts(raw, masks, "image", cls.side)(), strict=True))
            counts.append(ClassCounts.of(maps, truth, scenes))

        def figures(weights: Array) -> dict[str, Array]:
            ap, iou = zip(*(count.figures(weights) for count in counts), strict=True)
            return {"mean_average_precision": mean_over_classes(ap), "mean_iou": mean_over_classes(iou)}

        return figures

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """The first object of some scenes."""
        for position in np.unique(np.linspace(0, len(measures) - 1, NUM_EXAMPLES).astype(int)):
            chosen = np.array([position])
            scene = evaluation_scene(self.seed, SceneItem(**measures.items[int(position)]), self.side)
            maps = {
                name: normalized_heatmaps(measures.take(f"map {name}", chosen)[:, 0, 0], "image", self.side, 0, 1)[
                    0
                ].numpy()
                for name in measures.methods
            }
            mask = unpack_masks(measures.take("masks", chosen)[:, 0], self.side)[0]
            title = f"{CLASSES[scene.classes[0]].name}, by {self.kinds[0]}"
            yield Example(title, Image.fromarray(scene.image), mask, maps)


def central_blob(size: int) -> Array:
    """A Gaussian in the center, float32 `[size, size]`, in (0, 1]."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    blob: Array = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 0.4**2))
    return blob


def _padded(values: Array) -> Array:
    """Values of each object `[kinds, n, ...]`, zeros for those that are missing to four."""
    padded = np.zeros((values.shape[0], MAX_OBJECTS, *values.shape[2:]), dtype=values.dtype)
    padded[:, : values.shape[1]] = values
    return padded
