"""Two runs compared, with a paired bootstrap over images: `python -m eval compare RUN_A RUN_B`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from eval.report import latex, markdown
from eval.store import Measures, RunError, RunFolder
from eval.task import Array, Resampler, Row, Task, get_task

NUM_LARGEST = 5


@dataclass(frozen=True)
class Difference:
    """One figure of two runs.

    Attributes:
        figure: its name.
        a, b: the runs' figures, exact, in [0, 1].
        low, high: 95 % interval of b - a over images drawn with replacement.
        p_value: two-sided: twice the share of draws whose difference has the other sign.
    """

    figure: str
    a: float
    b: float
    low: float
    high: float
    p_value: float


def bootstrap(a: Resampler, b: Resampler, num_images: int, replicates: int, seed: int) -> dict[str, Array]:
    """Differences b - a of each figure, `[replicates + 1]`; the first one is that of the images as they are.

    Args:
        a, b: the runs' figures for weights of the same images.
        num_images: number of images.
        replicates: number of draws.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    differences: dict[str, list[Array]] = {}
    for start in range(0, replicates + 1, 100):  # a hundred draws at a time bound the memory
        size = min(100, replicates + 1 - start)
        weights = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=size).astype(np.float64)
        if start == 0:
            weights[0] = 1
        first, second = a(weights), b(weights)
        for name, values in first.items():
            differences.setdefault(name, []).append(second[name] - values)
    return {name: np.concatenate(parts) for name, parts in differences.items()}


def compare(
    task: type[Task],
    runs: tuple[Measures, Measures],
    rows: tuple[Row, Row],
    replicates: int = 1000,
    seed: int = 0,
) -> list[Difference]:
    """The differences of two rows over the same items.

    Args:
        task: the benchmark.
        runs: their measures, of the same items.
        rows: one of each run, of the same variant.
        replicates: of the bootstrap.
        seed: of the bootstrap.
    """
    num_images = len(runs[0].groups("image")[1])
    a, b = (task.resampler(run, row) for run, row in zip(runs, rows, strict=True))
    differences = []
    for name, drawn in bootstrap(a, b, num_images, replicates, seed).items():
        exact = [row.figures[name] for row in rows]
        # figures of draws may be binned; what that changes is the same in all of them and is taken out
        draws = drawn[1:] - drawn[0] + exact[1] - exact[0]
        low, high = np.percentile(draws, [2.5, 97.5])
        opposite = min(float((draws <= 0).mean()), float((draws >= 0).mean()))
        p_value = min(1.0, max(2 * opposite, 1 / replicates))
        differences.append(Difference(name, exact[0], exact[1], float(low), float(high), p_value))
    return differences


def common(a: Measures, b: Measures) -> tuple[Measures, Measures]:
    """The items of both runs that belong to the same rows.

    Raises:
        RunError: the runs are of different benchmarks or data, or there is no common row.
    """
    if a.manifest["benchmark"] != b.manifest["benchmark"]:
        names = " and ".join(run.manifest["benchmark"] for run in (a, b))
        raise RunError(f"the two runs are of {names}; compare runs of the same benchmark")
    _, in_a, in_b = np.intersect1d(a.field("row"), b.field("row"), return_indices=True)
    first, second = a.subset(in_a), b.subset(in_b)
    pairs = chain(zip(first.items, second.items, strict=True), zip(first.digests(), second.digests(), strict=True))
    if not len(in_a) or any(own != other for own, other in pairs):
        raise RunError("the two runs are not over the same data; compare runs with the same --data")
    return first, second


def method_pairs(a: list[str], b: list[str], method_a: str | None, method_b: str | None) -> list[tuple[str, str]]:
    """The methods to compare: those asked for, else all that both runs have, else the first of each.

    Args:
        a, b: the runs' methods.
        method_a, method_b: asked for.

    Raises:
        RunError: a run has no heatmaps of a method.
    """
    for methods, method in ((a, method_a), (b, method_b)):
        if method is not None and method not in methods:
            raise RunError(f"there are no heatmaps of {method} in that run; there are {', '.join(methods)}")
    if method_a or method_b:
        first = method_a or (method_b if method_b in a else a[0])
        second = method_b or (method_a if method_a in b else b[0])
        return [(str(first), str(second))]
    both = [(method, method) for method in a if method in b]
    return both or [(a[0], b[0])]


def compare_runs(
    run_a: Path, run_b: Path, method_a: str | None, method_b: str | None, replicates: int, seed: int, with_latex: bool
) -> str:
    """The text that the command prints.

    Raises:
        RunError: a run cannot be read, or they cannot be compared.
    """
    folders = RunFolder.open(run_a), RunFolder.open(run_b)
    a, b = common(folders[0].measures(), folders[1].measures())
    task = get_task(a.manifest["benchmark"])
    pairs = method_pairs(task.methods_of(a), task.methods_of(b), method_a, method_b)
    rows = task.summarize(a), task.summarize(b)
    lines: list[tuple[str, ...]] = []
    largest: tuple[Row, Row] | None = None
    for methods in pairs:
        ours, theirs = ([row for row in rows[run] if row.method == methods[run]] for run in (0, 1))
        for first, second in zip(ours, theirs, strict=True):
            what = (methods[0] if methods[0] == methods[1] else " / ".join(methods), *first.variant.values())
            differences = compare(task, (a, b), (first, second), replicates, seed)
            lines += [(*what, *_cells(task, difference, replicates)) for difference in differences]
            largest = largest or (first, second)
    variants = [name.capitalize() for name in rows[0][0].variant]
    heading = ("Methods", *variants, "Figure", "A", "B", "B - A", "95 % interval", "p")
    names = [folder.manifest["model"]["name"] for folder in folders]
    images = len(a.groups("image")[1])
    parts = [
        f"A: {run_a} ({names[0]})\nB: {run_b} ({names[1]})\n"
        f"{len(a)} items of {images} images, {replicates} draws of images with replacement",
        markdown(heading, lines),
    ]
    if with_latex:
        parts.append(latex(heading, lines))
    if largest and largest[0].details:
        parts += _largest(*largest)
    return "\n\n".join(parts)


def _cells(task: type[Task], difference: Difference, replicates: int) -> tuple[str, ...]:
    a, b, low, high = (100 * value for value in (difference.a, difference.b, difference.low, difference.high))
    rarest = 1 / replicates
    p_value = f"< {rarest:.2g}" if difference.p_value <= rarest else f"{difference.p_value:.3f}"
    name = task.columns.get(difference.figure, difference.figure)
    return name, f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}", f"[{low:+.1f}, {high:+.1f}]", p_value


def _largest(a: Row, b: Row) -> Sequence[str]:
    """The parts of the details whose first figure differs most."""
    figure = next(name for name, value in a.details[0].items() if isinstance(value, float))
    labels = [name for name, value in a.details[0].items() if isinstance(value, str)]
    known: list[tuple[Any, Any]] = [
        pair for pair in zip(a.details, b.details, strict=True) if not np.isnan(pair[0][figure])
    ]
    known.sort(key=lambda pair: -abs(pair[1][figure] - pair[0][figure]))
    cells = [
        (
            *(str(first[name]) for name in labels),
            f"{100 * first[figure]:.1f}",
            f"{100 * second[figure]:.1f}",
            f"{100 * (second[figure] - first[figure]):+.1f}",
        )
        for first, second in known[:NUM_LARGEST]
    ]
    what = ", ".join((a.method, *a.variant.values()))
    heading = [*(name.replace("_", " ").capitalize() for name in labels), "A", "B", "B - A"]
    return f"Largest differences in {figure.replace('_', ' ')} ({what}):", markdown(heading, cells)
