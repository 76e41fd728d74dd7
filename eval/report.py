"""What a run writes and prints: `results.json`, `details.csv`, and tables in Markdown and LaTeX."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from avgrad.files import write_atomic
from eval.store import Measures, RunFolder
from eval.task import Problem, Row, Task

# ------------------------------------------------------------------ tables


def header(task: type[Task], rows: Sequence[Row]) -> tuple[str, ...]:
    """The headings of a task's table."""
    return ("Method", *(name.capitalize() for name in rows[0].variant), *task.columns.values())


def table(task: type[Task], model: str, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows under `header`, figures in percent; the papers' own rows come last."""
    ours = [
        (f"{model}, {row.method}", *row.variant.values(), *(percent(row.figures[name]) for name in task.columns))
        for row in rows
    ]
    theirs = [
        (
            f"{row.name} (as published: {row.source}{'; trained with masks' if row.trained_with_masks else ''})",
            *("not stated" for _ in rows[0].variant),
            *(percent(row.figures[name] / 100) if name in row.figures else "" for name in task.columns),
        )
        for row in task.published
    ]
    return ours + theirs


def percent(value: float) -> str:
    """A figure in percent with one decimal; "-" if it is NaN.

    >>> percent(0.4804), percent(float("nan"))
    ('48.0', '-')
    """
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(("Method", "mAP"), [("legrad", "48.0")]))
    | Method   |   mAP |
    |:---------|------:|
    | legrad   |  48.0 |
    """
    return _tabulate(header, rows, "pipe")


def latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in LaTeX, for the booktabs package."""
    return _tabulate(header, rows, "latex_booktabs")


def _tabulate(header: Sequence[str], rows: Sequence[Sequence[str]], table_format: str) -> str:
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    align = ["right" if all(map(is_number, column)) else "left" for column in columns]
    # the cells are formatted already
    return tabulate(rows, header, tablefmt=table_format, disable_numparse=True, colalign=align)


def is_number(text: str) -> bool:
    """Whether a cell is right-aligned: a number, or nothing."""
    try:
        float(text.strip("-") or 0)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------ files


def all_problems(task: type[Task], measures: Measures) -> list[Problem]:
    """Every problem of a run, in the order of the rows."""
    before = [Problem(*fields) for fields in measures.manifest["data"]["problems"]]
    found = [*before, *measures.problems, *task.problems_of(measures)]
    return sorted(found, key=lambda problem: (problem.row, problem.kind, problem.message))


def write_results(
    folder: RunFolder,
    task: type[Task],
    measures: Measures,
    rows: Sequence[Row],
    ablation: Sequence[tuple[int, Row]] = (),
) -> dict[str, Any]:
    """Writes `results.json` and, where a task has them, `details.csv` into the run's folder.

    Args:
        folder: of the run.
        task: the benchmark.
        measures: of the run.
        rows: of the table.
        ablation: of the layer ablation, first layer and row.

    Returns:
        The content of `results.json`.
    """
    manifest, digest = dict(folder.manifest), hashlib.sha256()
    for own in measures.digests():
        digest.update(own)
    problems = all_problems(task, measures)
    data = {key: value for key, value in manifest.pop("data").items() if key != "problems"}
    results = [
        {"method": row.method, **row.variant, **_json(row.figures), "details": [_json(part) for part in row.details]}
        for row in rows
    ]
    if ablation:
        manifest["layer_ablation"] = [
            {"first_layer": layer, **own.variant, **_json(own.figures)} for layer, own in ablation
        ]
    content = {
        **manifest,
        "data": {
            **data,
            "content_fingerprint": digest.hexdigest(),
            "evaluated_items": len(measures),
        },
        "results": results,
        "problems": {
            "counts": dict(sorted(Counter(problem.kind for problem in problems).items())),
            "rows": [vars(problem) for problem in problems],
        },
    }
    write_atomic(folder.path / "results.json", (json.dumps(content, indent=1) + "\n").encode())
    if rows[0].details:
        lines = io.StringIO()
        columns = ["method", *rows[0].variant, *rows[0].details[0]]
        writer = csv.DictWriter(lines, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            for detail in row.details:
                writer.writerow({"method": row.method, **row.variant, **_json(detail)})
        write_atomic(folder.path / "details.csv", lines.getvalue().encode())
    return content


def _json(values: Any) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
