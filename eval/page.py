"""The report of a run: `report.html`, a page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avgrad.files import write_atomic
from eval.layer_ablation import ablation_table, plot
from eval.report import header, is_number, percent, table
from eval.task import Array, Example, Row, Task

NUM_EXTREMES = 5
MASK_COLOR = (0.0, 0.8, 0.2)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1c1c; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #ddd }
td.number { text-align: right; font-variant-numeric: tabular-nums }
tr.published td { color: #666; font-style: italic }
img { max-width: 100%; height: auto }
pre { overflow-x: auto; background: #f4f4f4; padding: 1rem }
.images { display: flex; gap: .5rem; flex-wrap: wrap }
figure { margin: 0 0 1rem; width: 224px; text-align: center }
.tables { display: flex; flex-wrap: wrap; gap: 3rem }
"""


def write_page(
    path: Path,
    task: type[Task],
    content: dict[str, Any],
    rows: Sequence[Row],
    examples: Iterable[Example],
    ablation: Sequence[tuple[int, Row]] = (),
) -> None:
    """Writes the report.

    Args:
        path: of the file.
        task: the benchmark.
        content: of `results.json`.
        rows: of the table.
        examples: images to show.
        ablation: of the layer ablation, first layer and row.
    """
    title = f"{content['benchmark']}: {content['model']['name']}"
    data, problems = content["data"], content["problems"]
    counts = ", ".join(f"{count} {kind}" for kind, count in problems["counts"].items()) or "none"
    listed = "".join(f"<li>row {p['row']}: {_text(p['kind'])}: {_text(p['message'])}</li>" for p in problems["rows"])
    settings = {key: content[key] for key in ("arguments", "model", "data", "versions", "device")}
    lines = table(task, content["model"]["name"], rows)
    body = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{_text(title)}</title><style>{STYLE}</style></head><body>
<h1>{_text(title)}</h1>
<p>{_text(task.measures)}. {data["evaluated_items"]} of {data["rows"]} rows evaluated. Figures in percent. Rows in
italics are published figures, measured on the original data.</p>
{_html_table(header(task, rows), lines, len(rows))}
{_curves(task, rows)}{_ablation(task, ablation)}{_extremes(rows[0]) if task.ranked else ""}
<h2>Images</h2><p>Each heatmap min-max normalized.</p>
{_images(examples)}
<h2>Problems with the data</h2><p>{_text(counts)}</p><details><summary>By row</summary><ul>{listed}</ul></details>
<h2>Settings</h2><pre>{_text(json.dumps(settings, indent=1))}</pre>
</body></html>
"""
    write_atomic(path, body.encode())


def _text(text: str) -> str:
    return html.escape(text)


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_ours: int) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td{' class=number' if is_number(c) else ''}>{_text(c)}</td>" for c in row)
        lines.append(f"<tr{' class=published' if place >= num_ours else ''}>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _label(row: Row) -> str:
    return ", ".join((row.method, *row.variant.values()))


def _extremes(row: Row) -> str:
    """The best and the worst of a row's details, by their first figure."""
    if not row.details:
        return ""
    figures = [name for name, value in row.details[0].items() if isinstance(value, float)]
    known = [part for part in row.details if not np.isnan(part[figures[0]])]
    known.sort(key=lambda part: -part[figures[0]])

    def cell(name: str, value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.3f}" if name == "threshold" else percent(value)

    heading = [name.replace("_", " ") for name in row.details[0]]
    best, worst = (
        [[cell(*entry) for entry in part.items()] for part in parts[:NUM_EXTREMES]] for parts in (known, known[::-1])
    )
    return (
        f"<h2>Best and worst</h2><p>By {_text(figures[0].replace('_', ' '))} of {_text(_label(row))}.</p>"
        f"<div class=tables><div><h3>Best</h3>{_html_table(heading, best, len(best))}</div>"
        f"<div><h3>Worst</h3>{_html_table(heading, worst, len(worst))}</div></div>"
    )


def _curves(task: type[Task], rows: Sequence[Row]) -> str:
    """The task's curves, panel by panel."""
    panels = task.curves(rows)
    if not panels:
        return ""
    from matplotlib.figure import Figure

    x, y = task.curve_axes
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for place, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for label, curve in curves.items():
            axes.plot(*curve, label=label)
        axes.set(xlabel=x, ylabel=y, xlim=(0, None), ylim=(0, 1), title=title)
        axes.legend(fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    title = f"{y.capitalize()} over {x}"
    return f"<h2>{title}</h2>{_inline(Image.open(stream).convert('RGB'), title)}"


def _ablation(task: type[Task], ablation: Sequence[tuple[int, Row]]) -> str:
    """The main figure by the first layer that legrad explains."""
    if not ablation:
        return ""
    heading, lines = ablation_table(task, ablation)
    image = Image.open(io.BytesIO(plot(task, ablation))).convert("RGB")
    return (
        "<h2>Layer ablation</h2><p>legrad, explaining from each layer to the last one.</p>"
        f"{_inline(image, 'Figures by the first layer explained')}{_html_table(heading, lines, len(lines))}"
    )


def _images(examples: Iterable[Example]) -> str:
    """Each example as it is, with the ground truth, and with each heatmap."""
    from matplotlib import colormaps

    rows = []
    for example in examples:
        gray = np.asarray(example.image.convert("L"), dtype=np.float32)[..., None] / 255
        tiles = {
            example.title: np.asarray(example.image),
            "ground truth": _blend(gray, np.where(example.truth[..., None], MASK_COLOR, gray)),
        }
        for caption, heatmap in example.heatmaps.items():
            tiles[caption] = _blend(gray, colormaps["turbo"](heatmap)[..., :3])
        cells = (f"<figure>{_inline(Image.fromarray(t), c)}<figcaption>{_text(c)}</figcaption></figure>"
                 for c, t in tiles.items())  # fmt: skip
        rows.append(f"<div class=images>{''.join(cells)}</div>")
    return "\n".join(rows)


def _blend(gray: Array, colors: Array) -> Array:
    blended: Array = (255 * (0.4 * gray + 0.6 * colors)).round().astype(np.uint8)
    return blended


def _inline(image: Image.Image, description: str) -> str:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=88)
    content = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{_text(description)}" src="data:image/jpeg;base64,{content}">'
