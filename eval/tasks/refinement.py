"""Refinement: what following the edges of the image gains and costs, on synthetic scenes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from avgrad.engine.attribute import min_max, upsample
from avgrad.models.devices import cpu_threads
from avgrad.refine import check_refinement, list_refiners, refine
from avgrad.scenes.images import MAX_OBJECTS
from eval.encoder import Encoder
from eval.store import Measures
from eval.task import Array, Case, DataError, Example, Inputs, Resampler, Row, task
from eval.tasks.scenes import SceneItem, Scenes, evaluation_scene

NONE = "none"


@task("refinement")
class Refinement(Scenes):
    """The scenes and prompts of `scenes`, with heatmaps as they are and by each refinement (`avgrad.refine`).

    Args:
        root: None, as there are no data.
        limit: number of scenes; None for 500.
        seed: of scenes and prompts.
        prompts: kinds of prompts, separated by "+".
        refinements: separated by "+".

    Raises:
        DataError: there is a folder, or an option is out of range.
    """

    measures = "mAP and mIoU of refined heatmaps of objects in synthetic scenes, and what refining takes"
    options: ClassVar[Mapping[str, str | int]] = {
        "seed": 1,
        "prompts": "sound",
        "refinements": "guided+grabcut+random_walker",
    }
    columns: ClassVar[Mapping[str, str]] = {
        "mean_average_precision": "mAP",
        "mean_iou": "mIoU",
        "least_gain": "mIoU gained, worst class",
    }

    def __init__(
        self,
        root: str | Path | None = None,
        limit: int | None = None,
        seed: int = 1,
        prompts: str = "sound",
        refinements: str = "guided+grabcut+random_walker",
    ) -> None:
        super().__init__(root, limit, seed, prompts)
        self.refinements = tuple(refinements.split("+"))
        if not set(self.refinements) <= set(list_refiners()) or len(set(self.refinements)) != len(self.refinements):
            raise DataError(f"refinements={refinements!r}; some of {'+'.join(list_refiners())} are expected")
        self.chosen = {**self.chosen, "refinements": refinements}
        self.fingerprint = hashlib.sha256(json.dumps([self.fingerprint, refinements]).encode()).hexdigest()

    def load(self, item: SceneItem, inputs: Inputs) -> Case:
        """A scene with its image."""
        case = super().load(item, inputs)
        return replace(case, truth={**case.truth, "image": evaluation_scene(self.seed, item, self.side).image})

    def probe(
        self, case: Case, maps: Mapping[str, Array], embeddings: torch.Tensor, encoder: Encoder
    ) -> dict[str, Array]:
        """Nothing: scores are those of `scenes`."""
        return {}

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """Besides the raw maps, refined heatmaps float16 `[kinds, 4, side, side]`, and the seconds of each."""
        kept, image = dict(super().measure(case, maps)), Image.fromarray(case.truth["image"])
        for method, raw in maps.items():
            heat = min_max(upsample(torch.from_numpy(raw)[None], (self.side, self.side)))[0].numpy()
            for name in self.refinements:
                start = time.perf_counter()
                options = check_refinement(name, {})
                refined = np.stack([refine(image, own, (raw.shape[1], raw.shape[2]), name, options) for own in heat])
                seconds = (time.perf_counter() - start) / len(heat)
                shaped = refined.astype(np.float16).reshape(len(self.kinds), -1, self.side, self.side)
                padded = np.zeros((len(self.kinds), MAX_OBJECTS, self.side, self.side), dtype=np.float16)
                padded[:, : shaped.shape[1]] = shaped
                kept[f"map {method}, {name}"] = padded
                kept[f"seconds {method}, {name}"] = np.array(seconds)
        return kept

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """For each kind of prompt and method a row without refinement, and one for each refinement."""
        classes, rows = measures.take("classes"), []
        names = str(measures.manifest["options"]["refinements"]).split("+")
        with cpu_threads(1), ThreadPoolExecutor(os.cpu_count()) as pool:
            for place, kind in enumerate(cls._kinds(measures)):
                for method in measures.methods:
                    before: dict[str, float] = {}
                    for name in (NONE, *names):
                        key = method if name == NONE else f"{method}, {name}"
                        row = cls._row(pool, measures, classes, key, kind, place, 0.0)
                        ious = {str(part["class_name"]): float(part["iou"]) for part in row.details}
                        before = before or ious
                        least = min(iou - before[own] for own, iou in ious.items())
                        milliseconds = "" if name == NONE else f"{1000 * measures.take(f'seconds {key}').mean():.1f}"
                        variant = {"prompt": kind, "refinement": name, "ms per heatmap": milliseconds}
                        rows.append(
                            replace(row, method=method, variant=variant, figures={**row.figures, "least_gain": least})
                        )
        return rows

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """That of `scenes`, of the refined heatmaps."""
        name = row.variant["refinement"]
        return super().resampler(measures, row if name == NONE else replace(row, method=f"{row.method}, {name}"))

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """Some scenes as in `scenes`, with their refined heatmaps."""
        for example, position in zip(
            super().examples(measures, row), np.unique(np.linspace(0, len(measures) - 1, 8).astype(int)), strict=True
        ):
            method, chosen = measures.methods[0], np.array([position])
            refined = {
                f"{method}, {name}": measures.take(f"map {method}, {name}", chosen)[0, 0, 0].astype(np.float32)
                for name in self.refinements
            }
            yield replace(example, heatmaps={**example.heatmaps, **refined})
