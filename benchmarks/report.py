"""Measurements as tables, JSON and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from avgrad.files import write_atomic
from benchmarks.memory import Memory
from benchmarks.rows import Row
from benchmarks.tables import markdown


@dataclass(frozen=True)
class Result:
    """The measurements of one row.

    Attributes:
        model, dtype: as on the command line.
        library: whose code runs the plain forward pass.
        tokens: of one image.
        row: the row.
        seconds: one per round.
        flops: floating-point operations of one run.
        floor: the least arithmetic it needs, in plain forward passes; None where it is not known.
        memory: peak memory; None where it was not measured.
    """

    model: str
    dtype: str
    library: str
    tokens: int
    row: Row
    seconds: list[float]
    flops: int
    floor: float | None
    memory: Memory | None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def group(self) -> tuple[str, str, int, int]:
        """What the rows of one table have in common."""
        return self.model, self.dtype, self.row.size, self.row.batch

    def ratio(self, other: Result) -> float:
        """Its time over the other's: the median over rounds."""
        return statistics.median(own / its for own, its in zip(self.seconds, other.seconds, strict=True))

    def per_image(self) -> float:
        """Seconds."""
        return self.median / self.row.batch


def groups(results: Iterable[Result]) -> list[list[Result]]:
    """The results of each model, dtype, size and batch, in the order given."""
    found: dict[tuple[str, str, int, int], list[Result]] = {}
    for result in results:
        found.setdefault(result.group, []).append(result)
    return list(found.values())


def _reference(group: Sequence[Result], kind: str) -> Result:
    return next(result for result in group if result.row.kind == kind and not result.row.compiled)


def _alone(result: Result, results: Sequence[Result]) -> Result | None:
    """The same row with a batch of one."""
    same = (asdict(other.row) | {"batch": result.row.batch} == asdict(result.row) for other in results)
    pairs = zip(results, same, strict=True)
    return next(
        (
            other
            for other, is_same in pairs
            if is_same and other.row.batch == 1 and (other.model, other.dtype) == (result.model, result.dtype)
        ),
        None,
    )


def figures(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One entry per row with all that tables show and every single time.

    `forwards` are times in plain forward passes of the library, `own_forwards` in those of avgrad (medians over rounds
    of the ratio within a round), `over_floor` is `own_forwards` over `floor`, and `over_batch_1` the time per image
    over that of the same row with a batch of one.
    """
    entries = []
    for group in groups(results):
        plain, own = _reference(group, "plain"), _reference(group, "encode")
        for result in group:
            own_forwards, alone = result.ratio(own), _alone(result, results)
            memory = result.memory
            entries.append(
                {
                    "model": result.model,
                    "dtype": result.dtype,
                    **asdict(result.row),
                    "label": result.row.label,
                    "tokens": result.tokens,
                    "median_seconds": result.median,
                    "images_per_second": 1 / result.per_image(),
                    "forwards": result.ratio(plain),
                    "own_forwards": own_forwards,
                    "flops": result.flops,
                    "flops_in_forwards": result.flops / plain.flops,
                    "floor": result.floor,
                    "over_floor": None if result.floor is None else own_forwards / result.floor,
                    "over_batch_1": None if alone is None else result.per_image() / alone.per_image(),
                    "peak_memory_bytes": None if memory is None else memory.peak,
                    "peak_memory_code_bytes": None if memory is None else memory.code,
                    "memory_over_plain": memory.peak / plain.memory.peak if memory and plain.memory else None,
                    "seconds": result.seconds,
                }
            )
    return entries


_COLUMNS: dict[str, tuple[str, str]] = {
    "median_seconds": ("ms", "{:.1f}"),
    "images_per_second": ("images/s", "{:.1f}"),
    "over_batch_1": ("per image / batch of 1", "{:.2f}"),
    "forwards": ("plain forwards", "{:.2f}"),
    "own_forwards": ("own forwards", "{:.2f}"),
    "floor": ("floor", "{:.2f}"),
    "over_floor": ("own / floor", "{:.2f}"),
    "flops": ("GFLOP", "{:.1f}"),
    "peak_memory_bytes": ("peak MB", "{:.0f}"),
    "memory_over_plain": ("peak / plain", "{:.2f}"),
}
_UNITS = {"median_seconds": 1e3, "flops": 1e-9, "peak_memory_bytes": 1e-6}


def tables(results: Sequence[Result]) -> str:
    """A Markdown table for each model, dtype, size and batch. Columns without any figure are left out."""
    entries, texts = figures(results), []
    batches = {result.row.batch for result in results}
    columns = [key for key in _COLUMNS if any(entry[key] is not None for entry in entries)]
    if batches == {1}:
        columns = [key for key in columns if key != "over_batch_1"]
    for group in groups(results):
        model, dtype, size, batch = group[0].group
        title = f"{model} in {dtype}, {size} pixels ({group[0].tokens} tokens), batch of {batch}"
        rows = []
        for entry in entries:
            if (entry["model"], entry["dtype"], entry["size"], entry["batch"]) == group[0].group:
                cells = [
                    "" if entry[key] is None else _COLUMNS[key][1].format(entry[key] * _UNITS.get(key, 1))
                    for key in columns
                ]
                label = f"{entry['label']} ({group[0].library})" if entry["kind"] == "plain" else entry["label"]
                rows.append([label, *cells])
        texts.append(f"{title}\n\n{markdown(['row', *(_COLUMNS[key][0] for key in columns)], rows)}")
    return "\n\n".join(texts)


def plot(results: Sequence[Result], path: Path) -> None:
    """Time against the number of tokens, and the same in plain forward passes with the floor, for a batch of each size.

    Args:
        results: of one batch size and at least two image sizes.
        path: a PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    models = list(dict.fromkeys((result.model, result.dtype) for result in results))
    figure = Figure(figsize=(12, 4.5 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False)
    for (model, dtype), (left, right) in zip(models, grid, strict=True):
        of_model = [result for result in results if (result.model, result.dtype) == (model, dtype)]
        for label in dict.fromkeys(result.row.label for result in of_model):
            line = sorted((r for r in of_model if r.row.label == label), key=lambda result: result.tokens)
            plains = [_reference([r for r in of_model if r.group == result.group], "plain") for result in line]
            tokens = [result.tokens for result in line]
            (drawn,) = left.plot(tokens, [1e3 * result.median for result in line], marker="o", label=label)
            ratios = [result.ratio(plain) for result, plain in zip(line, plains, strict=True)]
            right.plot(tokens, ratios, marker="o", color=drawn.get_color())
            if line[0].row.kind in ("method", "further") and line[0].floor is not None:
                right.plot(tokens, [result.floor for result in line], linestyle=":", color=drawn.get_color())
        left.set(title=f"{model}, {dtype}", ylabel="milliseconds", xscale="log", yscale="log")
        right.set(title="dotted: the floor", ylabel="plain forward passes", xscale="log", ylim=(0, None))
        for axes in (left, right):
            axes.set_xlabel("tokens")
            axes.set_xticks(sorted({result.tokens for result in of_model}))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.minorticks_off()
        left.legend(fontsize="small")
    write_atomic(path, partial(figure.savefig, format="png", dpi=120))
