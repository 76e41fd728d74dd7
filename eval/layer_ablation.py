"""The layer ablation (LeGrad's Fig. 4): a benchmark's main figure as a function of the first layer explained.

LeGrad's map is a sum over layers, so the maps from every first layer on come from one pass. Each of them is measured
as if it were a method of its own, named by `ablated_methods`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.report import percent
from eval.task import Row, Task

METHOD = "legrad"


def ablated_methods(layers: Sequence[int]) -> dict[str, int]:
    """The first layer of each ablated method; the method itself explains from the first of all on.

    Args:
        layers: that the method explains, ascending.

    >>> ablated_methods([0, 1, 2])
    {'legrad from layer 1': 1, 'legrad from layer 2': 2}
    """
    return {f"{METHOD} from layer {layer}": layer for layer in layers[1:]}


def split(manifest: Mapping[str, Any], rows: Sequence[Row]) -> tuple[list[Row], list[tuple[int, Row]]]:
    """The rows of the run's methods, and those of the ablation with their first layers, ascending.

    Args:
        manifest: of the run.
        rows: of all of its methods.
    """
    ablation = manifest.get("layer_ablation")
    if ablation is None:
        return list(rows), []
    first_layers = {METHOD: ablation["first_layer"], **ablation["methods"]}
    ablated = [(first_layers[row.method], row) for row in rows if row.method in first_layers]
    main = [row for row in rows if row.method not in ablation["methods"]]
    return main, sorted(ablated, key=lambda pair: pair[0])


def ablation_table(task: type[Task], ablation: Sequence[tuple[int, Row]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Heading and rows of the table: the main figure in percent, a column for each variant."""
    labels, values = _curves(task, ablation)
    layers = dict.fromkeys(layer for layer, _ in ablation)
    lines = [(str(layer), *map(percent, row)) for layer, row in zip(layers, values, strict=True)]
    return ["First layer", *labels], lines


def plot(task: type[Task], ablation: Sequence[tuple[int, Row]]) -> bytes:
    """The main figure over the first layer, a line for each variant, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    labels, values = _curves(task, ablation)
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(list(dict.fromkeys(layer for layer, _ in ablation)), 100 * np.array(values), marker="o", label=labels)
    axes.set(xlabel="first layer explained", ylabel="percent")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def _curves(task: type[Task], ablation: Sequence[tuple[int, Row]]) -> tuple[list[str], list[list[float]]]:
    """The label of each variant, and for each first layer the main figure of each variant."""
    name, heading = next(iter(task.columns.items()))
    variants = dict.fromkeys(", ".join(row.variant.values()) for _, row in ablation)
    values: dict[int, list[float]] = {}
    for layer, row in ablation:
        values.setdefault(layer, []).append(row.figures[name])
    return [f"{heading} ({variant})" if variant else heading for variant in variants], list(values.values())
