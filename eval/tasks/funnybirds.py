"""FunnyBirds (Hesse et al., ICCV 2023): explanations against interventions on rendered birds (LeGrad's Table 10)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from avgrad.errors import MediaError
from avgrad.media import load_image
from eval.encoder import ClassPrompt, Encoder
from eval.metrics import funnybirds as fb
from eval.reading import check_rows, read_records, shown
from eval.store import Measures
from eval.task import Array, Case, DataError, Inputs, Item, Resampler, Row, Task, task

SIZE = 256  # of the images in pixels
BATCH = 32
# every set of kept parts, as the files of interventions are named
KEPT = [frozenset(kept) for count in range(len(fb.PARTS) + 1) for kept in combinations(fb.PARTS, count)]


@dataclass(frozen=True)
class BirdImage(Item):
    """A test image.

    Attributes:
        label: its class.
        num_background: number of its background objects.
    """

    label: int
    num_background: int


@task("funnybirds")
class FunnyBirds(Task):
    """The Co-12 protocols for a classifier of the data set's classes, such as timm's with 50.

    An explanation is the raw map, upsampled to the image by its nearest values, as the original's wrappers of vision
    transformers do. Importances are needed of the label, the predicted class and two more (`target_sensitivity`).
    """

    measures = "completeness, correctness, contrastivity and background independence of explanations (Co-12)"
    source = "https://github.com/visinf/funnybirds-framework (rendered images)"
    layout = """dataset_test.json, classes.json
test/CLASS/INDEX.png, test_part_map/CLASS/INDEX.png
test_interventions/CLASS/INDEX/body_PARTS.png
test_interventions/CLASS/INDEX/background_interventions/NUMBER.png"""
    modalities = ("text",)
    columns: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "background_independence": "BI",
        "csdc": "CSDC",
        "preservation_check": "PC",
        "deletion_check": "DC",
        "distractibility": "D",
        "single_deletion": "SD",
        "target_sensitivity": "TS",
    }
    items: list[BirdImage]

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        self.root = Path(root)
        classes = read_records(self.root / "classes.json")
        try:
            ordered = sorted(classes, key=lambda record: int(record["class_idx"]))
            self.class_parts = np.array([[int(c["parts"][part]) for part in fb.PARTS] for c in ordered], dtype=np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"classes.json cannot be used ({error!r}); class_idx and parts are expected") from None
        self.class_names = [f"bird {index}" for index in range(len(classes))]
        path = self.root / "dataset_test.json"
        self.items, self.problems, self.num_rows, digest = check_rows(
            self.name, path, enumerate(read_records(path), start=1), self._item, self._paths, limit
        )
        self.most_background = max(item.num_background for item in self.items)
        self.fingerprint = hashlib.sha256(self.class_parts.tobytes() + digest.encode()).hexdigest()

    def _item(self, number: int, row: Mapping[str, Any]) -> BirdImage:
        label, objects = row.get("class_idx"), row.get("bg_objects", "")
        if not isinstance(label, int) or not 0 <= label < len(self.class_parts) or not isinstance(objects, str):
            raise DataError(f"class_idx is {shown(str(label))} and bg_objects {shown(str(objects))}")
        count = sum(1 for name in objects.split(",") if name)
        return BirdImage(number, f"{label}/{number - 1:06d}", label, count)

    def _paths(self, item: BirdImage) -> list[Path]:
        """Image, part map, interventions in the order of `KEPT`, and without each background object."""
        folder = self.root / "test_interventions" / item.image
        return [
            self.root / "test" / f"{item.image}.png",
            self.root / "test_part_map" / f"{item.image}.png",
            *(folder / f"body_{'_'.join(sorted(kept))}.png" for kept in KEPT),
            *(folder / "background_interventions" / f"{b}.png" for b in range(item.num_background)),
        ]

    def load(self, item: BirdImage, inputs: Inputs) -> Case:
        """Load an item with all its interventions."""
        paths = self._paths(item)
        try:
            image, part_map, *interventions = (load_image(path) for path in paths)
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).digest()
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        if part_map.size != (SIZE, SIZE):
            raise DataError(f"{paths[1]} has {part_map.width} x {part_map.height} pixels; {SIZE} x {SIZE} are expected")
        size = (inputs.image.size, inputs.image.size)
        pixels, *others = (inputs.image(i.resize(size, Image.Resampling.NEAREST)) for i in (image, *interventions))
        pair = fb.contrasting_classes(self.class_parts, item.label)
        prompts = [item.label, None, *(pair or (item.label, item.label))]
        truth = {
            "label": np.array(item.label),
            "prompts": np.array([-1 if index is None else index for index in prompts]),
            "part_map": np.asarray(part_map),
            "num_background": np.array(item.num_background),
        }
        own = [ClassPrompt(index) for index in prompts]
        return Case(pixels, own, truth, digest, others=torch.stack(others))

    def probe(self, case: Case, maps: Mapping[str, Array], embeddings: Tensor, encoder: Encoder) -> Mapping[str, Array]:
        """Logits of the image and its interventions, and the classes of the prompts."""
        logits = encoder.logits(case.pixels[None]).numpy()[0]
        changed = torch.cat([encoder.logits(part) for part in case.others.split(BATCH)]).numpy()
        background = np.full((self.most_background, len(logits)), np.nan, dtype=np.float32)
        background[: len(changed) - len(KEPT)] = changed[len(KEPT) :]
        prompts = case.truth["prompts"].copy()
        prompts[prompts < 0] = logits.argmax()
        return {
            "label": case.truth["label"],
            "class_parts": self.class_parts,
            "logits": logits,
            "kept": changed[: len(KEPT)],
            "background": background,
            "prompts": prompts,
        }

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """The importances by each method."""
        measured: dict[str, Array] = {}
        count = int(case.truth["num_background"])
        for name, raw in maps.items():
            large = F.interpolate(torch.from_numpy(raw)[:, None], (SIZE, SIZE), mode="nearest")[:, 0].numpy()
            objects = np.full((len(raw), self.most_background), np.nan)
            objects[:, :count] = fb.background_importances(large, case.truth["part_map"], count)
            measured[f"parts {name}"] = fb.part_importances(large, case.truth["part_map"])
            measured[f"objects {name}"] = objects
            measured[f"total {name}"] = large.sum((1, 2), dtype=np.float64)
        return measured

    @classmethod
    def _birds(cls, measures: Measures, method: str) -> Iterator[fb.Bird]:
        names = (
            "label",
            "logits",
            "kept",
            "background",
            "prompts",
            f"parts {method}",
            f"objects {method}",
            f"total {method}",
        )
        rows = (zip(*parts, strict=True) for parts in zip(*(measures.stream(n, 64) for n in names), strict=True))
        for values in chain.from_iterable(rows):
            label, logits, kept, background, prompts, parts, objects, total = values
            known = ~np.isnan(background[:, 0])
            # of the other classes nothing is asked
            importance = np.full((len(logits), len(fb.PARTS)), np.nan)
            object_importance, totals = np.full((len(logits), int(known.sum())), np.nan), np.full(len(logits), np.nan)
            importance[prompts], object_importance[prompts], totals[prompts] = parts, objects[:, known], total
            without = {frozenset(fb.PARTS) - own: values for own, values in zip(KEPT, kept, strict=True)}
            yield fb.Bird(int(label), logits, without, background[known], importance, object_importance, totals)

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each method."""
        parts = measures.take("class_parts", np.array([0]))[0]
        return [Row(m, {}, fb.funnybirds_figures(cls._birds(measures, m), parts)) for m in measures.all_methods]

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Means over images at the threshold of all of them."""
        class_parts = measures.take("class_parts", np.array([0]))[0]
        sets, place = (
            fb.minimal_sufficient_sets(class_parts),
            int(np.argmin(abs(fb.THRESHOLDS - row.figures["threshold"]))),
        )
        found: dict[str, list[float]] = {name: [] for name in cls.columns}
        objects = []  # background independence is a mean over background objects
        for bird in cls._birds(measures, row.method):
            own = fb.bird_values(bird, class_parts, sets)
            for name, entries in found.items():
                entries.append(float(own[name][place] if own[name].ndim else own[name]))
            objects.append(len(bird.without_background))
        values = {name: np.array(entries) for name, entries in found.items()}
        counts = {name: np.isfinite(value).astype(float) for name, value in values.items()}
        counts["background_independence"] *= objects

        def figures(weights: Array) -> dict[str, Array]:
            drawn = {}
            for name, value in values.items():
                own = weights * counts[name]
                total = own.sum(axis=1)
                mean = own @ np.nan_to_num(value)
                drawn[name] = np.divide(mean, total, out=np.full(len(weights), np.nan), where=total > 0)
            return drawn

        return figures
