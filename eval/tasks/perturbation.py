"""Perturbation on ImageNet's validation images (Chefer et al., CVPR 2021; LeGrad's Tables 5, 6 and 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from avgrad.errors import MediaError
from avgrad.media import load_image
from eval.encoder import ClassPrompt, Encoder
from eval.metrics.perturbation import STEPS, hits, perturbation_figures, remove_pixels
from eval.reading import check_rows, shown
from eval.store import Measures
from eval.task import Array, Case, DataError, Inputs, Item, Resampler, Row, Task, task

CLASSES = ("predicted", "target")  # whose map ranks the pixels
TESTS = ("positive", "negative")  # the most, or the least relevant pixels first
EXTENSIONS = (".jpeg", ".jpg", ".png")


@dataclass(frozen=True)
class LabeledImage(Item):
    """An image of a class.

    Attributes:
        label: index of the class.
    """

    label: int


@task("perturbation")
class Perturbation(Task):
    """Accuracy while 10 to 90 % of the pixels are set to black, in the order of relevance.

    Args:
        root: the folder that holds a folder for each class, or the one around it with the folder `val`.
        limit: number of items, the first ones; None for all.
    """

    measures = "accuracy while the most (positive) or the least (negative) relevant pixels are removed"
    source = "https://www.image-net.org (ILSVRC 2012 validation images, under ImageNet's terms)"
    layout = "val/WNID/*.JPEG (a folder per class, named by its WordNet id)"
    modalities = ("text",)
    columns: ClassVar[Mapping[str, str]] = {"auc": "AUC", "accuracy": "accuracy of whole images"}
    items: list[LabeledImage]

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data.imagenet_info import ImageNetInfo

        self.class_names = IMAGENET_CLASSNAMES
        root = Path(root)
        indices = {name: index for index, name in enumerate(ImageNetInfo().label_names())}
        try:
            self.root = root / "val" if (root / "val").is_dir() else root
            folders = sorted(folder for folder in self.root.iterdir() if folder.name in indices)
            files = [file for folder in folders for file in sorted(folder.iterdir())]
        except (OSError, ValueError) as error:
            raise DataError(f"{shown(str(root))} cannot be read ({error}); {self.layout} is expected") from None
        files = [file for file in files if file.suffix.lower() in EXTENSIONS]

        def make(number: int, file: Path) -> LabeledImage:
            return LabeledImage(number, f"{file.parent.name}/{file.name}", indices[file.parent.name])

        self.items, self.problems, self.num_rows, self.fingerprint = check_rows(
            self.name, root, enumerate(files, start=1), make, lambda item: [self.root / item.image], limit
        )

    def load(self, item: LabeledImage, inputs: Inputs) -> Case:
        """Load an image, resized to a square as in the original."""
        path = self.root / item.image
        try:
            square = load_image(path).resize((self.side, self.side), Image.Resampling.BILINEAR)
            digest = hashlib.sha256(path.read_bytes()).digest()
        except (MediaError, OSError) as error:
            raise DataError(str(error)) from error
        truth = {"label": np.array(item.label), "mean": np.array(inputs.image.mean), "std": np.array(inputs.image.std)}
        return Case(inputs.image(square), [ClassPrompt(None), ClassPrompt(item.label)], truth, digest)

    def probe(self, case: Case, maps: Mapping[str, Array], embeddings: Tensor, encoder: Encoder) -> Mapping[str, Array]:
        """Whether the label is predicted: for the whole image, and for each method, class, test and step."""
        label = case.truth["label"]
        mean, std = (torch.from_numpy(case.truth[name]).float()[:, None, None] for name in ("mean", "std"))
        image = (case.pixels * std + mean)[None]
        size = (case.pixels.shape[-2], case.pixels.shape[-1])
        measured = {"whole": hits(encoder.logits(case.pixels[None]).numpy(), label)[0]}
        for name, raw in maps.items():
            large = F.interpolate(torch.from_numpy(raw)[:, None], size, mode="bilinear", align_corners=False)
            found = np.zeros((len(CLASSES), len(TESTS), len(STEPS)), dtype=bool)
            for row, relevance in enumerate(large):
                for column in range(len(TESTS)):
                    parts = [remove_pixels(image, relevance, float(step), column == 0) for step in STEPS]
                    found[row, column] = hits(encoder.logits((torch.cat(parts) - mean) / std).numpy(), label)
            measured[f"hits {name}"] = found
        return measured

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each method, class and test."""
        rows, whole = [], measures.take("whole")
        for method in measures.all_methods:
            found = measures.take(f"hits {method}")
            for row, chosen in enumerate(CLASSES):
                for column, test in enumerate(TESTS):
                    figures = perturbation_figures(whole, found[:, row, column].T)
                    rows.append(Row(method, {"class": chosen, "test": test}, figures))
        return rows

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Areas are means over images."""
        place = CLASSES.index(row.variant["class"]), TESTS.index(row.variant["test"])
        whole, found = measures.take("whole"), measures.take(f"hits {row.method}")[:, place[0], place[1]]
        areas = np.array(
            [perturbation_figures(np.array([w]), h[:, None])["auc"] for w, h in zip(whole, found, strict=True)]
        )

        def figures(weights: Array) -> dict[str, Array]:
            total = weights.sum(axis=1)
            return {"auc": weights @ areas / total, "accuracy": weights @ whole.astype(float) / total}

        return figures
