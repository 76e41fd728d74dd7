"""ImageNet-Segmentation (Guillaumin et al., IJCV 2014) by the rule of Chefer et al., CVPR 2021 (LeGrad's Table 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from eval.encoder import ClassPrompt
from eval.metrics.segmentation import ForegroundScore, foreground_figures, scaled, score_foreground
from eval.reading import file_size, shown
from eval.store import Measures, unpack_masks
from eval.task import Array, Case, DataError, Example, Inputs, Item, Published, Resampler, Row, Task, spread, task

FILE = "gtsegs_ijcv.mat"
_LEGRAD = "Bousselham et al., ICCV 2025, ViT-B/16"


def _published(name: str, pixel_accuracy: float, mean_iou: float) -> Published:
    return Published(name, {"pixel_accuracy": pixel_accuracy, "mean_iou": mean_iou}, _LEGRAD)


@task("imagenet-segmentation")
class ImageNetSegmentation(Task):
    """Foreground segmentation by the map of the class that the model predicts.

    Images and masks are resized to a square; the foreground is where a map exceeds its mean. Only the first annotation
    of an image is used, as in the original.

    Args:
        root: the file, or its folder.
        limit: number of items, the first ones; None for all.
    """

    measures = "pixel accuracy, mIoU and mAP of the foreground"
    source = f"http://calvin-vision.net/bigstuff/proj-imagenet/data/{FILE} (4,276 images of ImageNet, under its terms)"
    layout = f"{FILE} (MATLAB 7.3: /value/img, /value/gt)"
    modalities = ("text",)
    columns: ClassVar[Mapping[str, str]] = {
        "pixel_accuracy": "pixel accuracy",
        "mean_iou": "mIoU",
        "mean_average_precision": "mAP",
        "mean_f1": "F1",
    }
    published = (
        _published("LeGrad", 77.52, 58.66),
        _published("TextSpan", 73.01, 40.26),
        _published("CheferCAM", 69.21, 47.47),
        _published("rollout", 60.63, 40.64),
    )

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        from open_clip import IMAGENET_CLASSNAMES

        self.class_names = IMAGENET_CLASSNAMES
        root = Path(root)
        self.path = root if root.suffix == ".mat" else root / FILE
        size = file_size(self.path)
        with self._open() as file:
            self.num_rows = int(file["value/img"].shape[0])
        count = self.num_rows if limit is None else min(limit, self.num_rows)
        if not count:
            raise DataError(f"{self.path} holds no image")
        self.items = [Item(row, f"{row:04d}") for row in range(1, count + 1)]
        self.problems = []
        self.fingerprint = hashlib.sha256(f"{size} {count}".encode()).hexdigest()

    def _open(self) -> Any:
        import h5py

        try:
            file = h5py.File(self.path, "r")
            if file["value/img"].shape[1:] != (1,) or file["value/gt"].shape != file["value/img"].shape:
                raise KeyError("value/img and value/gt are not two columns of the same length")
        except (OSError, KeyError, AttributeError) as error:
            raise DataError(f"{shown(str(self.path))} cannot be read ({error}); {self.layout} is expected") from None
        return file

    def _read(self, item: Item) -> tuple[Image.Image, Image.Image]:
        """Image and mask as they are stored."""
        with self._open() as file:
            try:
                pixels = np.asarray(file[file["value/img"][item.row - 1, 0]])
                cells = file[file["value/gt"][item.row - 1, 0]]
                mask = np.asarray(file[cells[0, 0]])
            except (OSError, KeyError, ValueError, TypeError) as error:
                raise DataError(f"item {item.row} of {self.path.name} cannot be read ({error})") from None
        # MATLAB's order: [3, W, H] and [W, H]
        if pixels.ndim != 3 or len(pixels) != 3 or mask.shape != pixels.shape[1:] or not mask.size:
            raise DataError(
                f"item {item.row} has an image of {list(pixels.shape)} and a mask of {list(mask.shape)}; [3, W, H] and "
                "[W, H] are expected"
            )
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(2, 1, 0).astype(np.uint8)))
        return image, Image.fromarray(255 * (mask.T > 0).astype(np.uint8))

    def load(self, item: Item, inputs: Inputs) -> Case:
        """Load an item."""
        image, labels = self._read(item)
        square = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        mask = np.asarray(labels.resize((self.side, self.side), Image.Resampling.NEAREST)) > 0
        digest = hashlib.sha256(image.tobytes() + labels.tobytes()).digest()
        return Case(inputs.image(square), [ClassPrompt(None)], {"mask": mask}, digest)

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """The figures of the image by each method, the mask and the raw maps for the report."""
        measured: dict[str, Array] = {"mask": np.packbits(case.truth["mask"])}
        for name, raw in maps.items():
            score = score_foreground(scaled(raw[0], self.side), case.truth["mask"])
            measured[f"score {name}"] = np.concatenate([np.ravel(value) for value in vars(score).values()])
            measured[f"map {name}"] = raw[0]
        return measured

    @classmethod
    def _scores(cls, measures: Measures, method: str) -> Iterator[ForegroundScore]:
        for values in measures.stream(f"score {method}"):
            for v in values:
                yield ForegroundScore(int(v[0]), int(v[1]), v[2:4], v[4:6], *(float(x) for x in v[6:]))

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each method."""
        return [Row(method, {}, foreground_figures(cls._scores(measures, method))) for method in measures.all_methods]

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """Sums over images, but for AP and F1, which are means."""
        values = measures.take(f"score {row.method}")
        correct, labeled, intersection, union = values[:, 0], values[:, 1], values[:, 2:4], values[:, 4:6]
        known = ~np.isnan(values[:, 6])
        average_precision, f1 = np.nan_to_num(values[:, 6]), values[:, 8]

        def figures(weights: Array) -> dict[str, Array]:
            return {
                "pixel_accuracy": weights @ correct / (weights @ labeled),
                "mean_iou": (weights @ intersection / np.maximum(weights @ union, 1)).mean(axis=1),
                "mean_average_precision": weights @ average_precision / np.maximum(weights @ known, 1),
                "mean_f1": weights @ f1 / weights.sum(axis=1),
            }

        return figures

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """Images from the highest pixel accuracy to the lowest."""
        for position in spread(measures.take(f"score {row.method}")[:, 0]):
            chosen = np.array([position])
            fields = measures.items[int(position)]
            image, _ = self._read(Item(**fields))
            mask = unpack_masks(measures.take("mask", chosen), self.side)[0]
            maps = {name: scaled(measures.take(f"map {name}", chosen)[0], self.side) for name in measures.methods}
            square = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
            yield Example(f"image {fields['image']}", square, mask, maps)
