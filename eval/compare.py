"""Two runs compared, with a paired bootstrap over images: `python -m eval.compare RUN_A RUN_B`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from avgrad.errors import InputError
from eval.metrics import ClassScore, score_class, thresholds_between
from eval.report import latex, markdown
from eval.results import NORMALIZATIONS, Normalization, class_names, heatmaps, unpack_masks
from eval.store import Array, Records, RunError, RunFolder

# Bins for the scores of a class's own pixels; the bootstrap counts bins, not pixels.
NUM_BINS = 256
NUM_LARGEST = 5


@dataclass(frozen=True)
class _Counts:
    """One class's pixels by image: they determine its figures for any choice of images.

    Attributes:
        images: place of each image in the list of all, `[n]`.
        mixed: whether a bin holds different scores of the class's own pixels, `[bins]`.
        total: pixels in each bin of scores, descending, `[n, bins]`.
        positive: those of them that belong to the class, `[n, bins]`.
        predicted: pixels above each threshold, `[n, thresholds]`.
        found: those of them that belong to the class, `[n, thresholds]`.
    """

    images: Array
    mixed: Array
    total: Array
    positive: Array
    predicted: Array
    found: Array

    @classmethod
    def of(cls, maps: Array, masks: Array, images: Array) -> _Counts:
        """Counts of one class's heatmaps `[n, side, side]`, masks alike, and the images that they belong to `[n]`."""
        scores, truth = maps.reshape(len(maps), -1), masks.reshape(len(masks), -1)
        # Lower edges of bins that hold equally many of the class's own pixels, whose places in the ranking are what
        # average precision is made of. Equal scores share a bin, and only a bin of different ones is inexact.
        low, high = float(scores.min()), float(scores.max())
        own = np.sort(scores[truth])
        places = np.linspace(0, own.size, min(NUM_BINS, own.size), endpoint=False).astype(int)
        edges = np.unique(np.append(own[places], np.float32(low)))
        bins = np.searchsorted(edges, own, side="right") - 1
        mixed = np.bincount(bins, weights=own > edges[bins], minlength=len(edges))[::-1] > 0
        thresholds = thresholds_between(low, high)

        def count(chosen: Array) -> tuple[Array, Array]:
            in_bin = np.bincount(np.searchsorted(edges, chosen, side="right") - 1, minlength=len(edges))
            above = chosen.size - np.searchsorted(np.sort(chosen), thresholds, side="right")
            return in_bin[::-1], above

        every = [count(s) for s in scores]
        true = [count(s[t]) for s, t in zip(scores, truth, strict=True)]
        return cls(
            images,
            mixed,
            *(np.stack([pair[0] for pair in pairs]).astype(np.float64) for pairs in (every, true)),
            *(np.stack([pair[1] for pair in pairs]).astype(np.float64) for pairs in (every, true)),
        )

    def figures(self, weights: Array) -> tuple[Array, Array]:
        """Average precision and best IoU, each `[R]`, where images count as often as the weights `[R, images]` say; NaN
        where no pixel of the class is left."""
        own = weights[:, self.images]
        total, positive = np.cumsum(own @ self.total, axis=1), own @ self.positive
        found = np.cumsum(positive, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = found / total
            before = np.concatenate([precision[:, :1], precision[:, :-1]], axis=1)
            # within a bin of different scores precision goes from the one value to the other
            halfway = np.where(self.mixed & np.isfinite(before), (precision + before) / 2, precision)
            ap = np.nansum(positive * halfway, axis=1) / found[:, -1]
            hits = own @ self.found
            iou = (hits / (own @ self.predicted + found[:, -1:] - hits)).max(axis=1)
        return ap, np.where(found[:, -1] > 0, iou, np.nan)


@dataclass(frozen=True)
class Difference:
    """One measure of two runs.

    Attributes:
        measure: "mAP" or "mIoU".
        a, b: the runs' figures, exact, in [0, 1].
        low, high: 95 % interval of b - a over images drawn with replacement.
        p_value: two-sided: twice the share of draws whose difference has the other sign.
    """

    measure: str
    a: float
    b: float
    low: float
    high: float
    p_value: float


def _mean_over_classes(values: Sequence[Array]) -> Array:
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    mean: Array = np.where(known, stacked, 0).sum(0) / np.maximum(known.sum(0), 1)
    return mean


def bootstrap(a: Sequence[_Counts], b: Sequence[_Counts], num_images: int, replicates: int, seed: int) -> Array:
    """Differences b - a of mAP and mIoU, `[replicates + 1, 2]`; the first one is that of the images as they are.

    Args:
        a, b: the runs' counts, class by class alike.
        num_images: number of images.
        replicates: number of draws.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    differences = []
    for start in range(0, replicates + 1, 100):  # a hundred draws at a time bound the memory
        size = min(100, replicates + 1 - start)
        weights = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=size).astype(np.float64)
        if start == 0:
            weights[0] = 1
        figures = [
            [_mean_over_classes(measure) for measure in zip(*(c.figures(weights) for c in run), strict=True)]
            for run in (a, b)
        ]
        differences.append(np.subtract(figures[1], figures[0]).T)
    return np.concatenate(differences)


def compare(
    runs: tuple[Records, Records],
    methods: tuple[str, str],
    place: int,
    normalization: Normalization,
    side: int,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[list[Difference], dict[int, tuple[ClassScore, ClassScore]]]:
    """Two runs over the same rows of the same data.

    Args:
        runs: their results.
        methods: which of the methods of each.
        place: which of the timings.
        normalization: of the heatmaps.
        side: of the masks.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The differences of mAP and mIoU, and both scores of each class.
    """
    _, images = np.unique(runs[0].images, return_inverse=True)
    counts: tuple[list[_Counts], list[_Counts]] = [], []  # type: ignore[assignment]
    classes: dict[int, tuple[ClassScore, ClassScore]] = {}
    raws = [run.maps[method][:, place] for run, method in zip(runs, methods, strict=True)]
    for class_id in np.unique(runs[0].class_ids):
        chosen = np.flatnonzero(runs[0].class_ids == class_id)
        masks = unpack_masks(runs[0].masks[chosen], side)
        scores = []
        for raw, run_counts in zip(raws, counts, strict=True):
            maps = heatmaps(raw[chosen], normalization, side, float(raw.min()), float(raw.max())).numpy()
            scores.append(score_class(maps, masks))
            run_counts.append(_Counts.of(maps, masks, images[chosen]))
        classes[int(class_id)] = (scores[0], scores[1])
    drawn = bootstrap(*counts, int(images.max()) + 1, replicates, seed)
    differences = []
    for column, (measure, attribute) in enumerate((("mAP", "average_precision"), ("mIoU", "iou"))):
        exact = [float(np.nanmean([getattr(pair[run], attribute) for pair in classes.values()])) for run in (0, 1)]
        # the draws are made with binned scores; what that changes is the same in all of them and is taken out
        draws = drawn[1:, column] - drawn[0, column] + exact[1] - exact[0]
        low, high = np.percentile(draws, [2.5, 97.5])
        opposite = min(float((draws <= 0).mean()), float((draws >= 0).mean()))
        p_value = min(1.0, max(2 * opposite, 1 / replicates))
        differences.append(Difference(measure, exact[0], exact[1], float(low), float(high), p_value))
    return differences, classes


def common(a: Records, b: Records) -> tuple[Records, Records]:
    """Those records of both runs that belong to the same rows.

    Raises:
        RunError: the rows ask different questions, or the files differed, or there is no common row.
    """
    _, in_a, in_b = np.intersect1d(a.rows, b.rows, return_indices=True)
    same = [
        np.array_equal(getattr(a, name)[in_a], getattr(b, name)[in_b]) for name in ("images", "class_ids", "digests")
    ]
    if not len(in_a) or not all(same):
        raise RunError("the two runs are not over the same data; compare runs with the same --data and --prompt")

    def take(run: Records, index: Array) -> Records:
        fields: dict[str, Any] = {
            name: getattr(run, name)[index]
            for name in ("rows", "images", "class_ids", "class_names", "masks", "digests")
        }
        return Records(**fields, maps={name: maps[index] for name, maps in run.maps.items()}, problems=run.problems)

    return take(a, in_a), take(b, in_b)


def _pairs(a: Records, b: Records, method_a: str | None, method_b: str | None) -> list[tuple[str, str]]:
    for run, method in ((a, method_a), (b, method_b)):
        if method is not None and method not in run.maps:
            raise RunError(f"there are no heatmaps of {method} in that run; there are {', '.join(run.maps)}")
    if method_a or method_b:
        first = method_a or (method_b if method_b in a.maps else next(iter(a.maps)))
        second = method_b or (method_a if method_a in b.maps else next(iter(b.maps)))
        return [(str(first), str(second))]
    both = [(method, method) for method in a.maps if method in b.maps]
    return both or [(next(iter(a.maps)), next(iter(b.maps)))]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run_a: Annotated[Path, typer.Argument(help="folder of a finished run")],
    run_b: Annotated[Path, typer.Argument(help="folder of another, over the same data")],
    method_a: Annotated[str | None, typer.Option(help="only this method of the first run")] = None,
    method_b: Annotated[str | None, typer.Option(help="only this method of the second run")] = None,
    replicates: Annotated[int, typer.Option(min=100, help="of the bootstrap")] = 1000,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    with_latex: Annotated[bool, typer.Option("--latex", help="print the table in LaTeX too")] = False,
) -> None:
    """Compare two runs, with a paired bootstrap over images.

    By default every method that both runs have is compared, for each timing and normalization.
    """
    try:
        folders = RunFolder.open(run_a), RunFolder.open(run_b)
        a, b = common(folders[0].records(), folders[1].records())
        pairs = _pairs(a, b, method_a, method_b)
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    data, names = folders[0].manifest["data"], class_names(a)
    header = ("Methods", "Timing", "Normalization", "Measure", "A", "B", "B - A", "95 % interval", "p")
    rows: list[tuple[str, ...]] = []
    largest: list[tuple[str, ...]] = []
    for pair in pairs:
        for place, timing in enumerate(data["timings"]):
            for normalization in NORMALIZATIONS:
                differences, classes = compare((a, b), pair, place, normalization, data["side"], replicates, seed)
                what = (pair[0] if pair[0] == pair[1] else " / ".join(pair), timing, normalization)
                rows += [(*what, *_cells(difference, replicates)) for difference in differences]
                if not largest:
                    largest = _largest(classes, names)
    models = [folder.manifest["model"]["name"] for folder in folders]
    print(f"A: {run_a} ({models[0]})\nB: {run_b} ({models[1]})")
    print(f"{len(a.rows)} items of {len(np.unique(a.images))} images, {replicates} draws of images with replacement\n")
    print(markdown(header, rows))
    if with_latex:
        print(f"\n{latex(header, rows)}")
    print(f"\nClasses that differ most in AP ({', '.join(rows[0][:3])}):\n")
    print(markdown(("Class", "Images", "A", "B", "B - A"), largest))


def _cells(difference: Difference, replicates: int) -> tuple[str, ...]:
    a, b, low, high = (100 * value for value in (difference.a, difference.b, difference.low, difference.high))
    rarest = 1 / replicates
    p_value = f"< {rarest:.2g}" if difference.p_value <= rarest else f"{difference.p_value:.3f}"
    return difference.measure, f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}", f"[{low:+.1f}, {high:+.1f}]", p_value


def _largest(classes: dict[int, tuple[ClassScore, ClassScore]], names: dict[int, str]) -> list[tuple[str, ...]]:
    known = [(c, *pair) for c, pair in classes.items() if not np.isnan(pair[0].average_precision)]
    known.sort(key=lambda entry: -abs(entry[2].average_precision - entry[1].average_precision))
    return [
        (names[c], str(a.num_images), f"{100 * a.average_precision:.1f}", f"{100 * b.average_precision:.1f}",
         f"{100 * (b.average_precision - a.average_precision):+.1f}")
        for c, a, b in known[:NUM_LARGEST]
    ]  # fmt: skip


if __name__ == "__main__":
    app()
