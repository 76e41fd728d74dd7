"""A run's figures as tables (Markdown, LaTeX) and as a page (`report.html`)."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tabulate import tabulate

from avgrad.errors import MediaError
from avgrad.files import write_atomic
from eval.metrics import RECALL_LEVELS
from eval.results import Figures, class_names, heatmaps, unpack_masks
from eval.store import Array, Records

NUM_IMAGES = 8
NUM_EXTREMES = 5
MASK_COLOR = (0.0, 0.8, 0.2)


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        name: of the method, as the paper calls it.
        mean_average_precision: in percent.
        mean_iou: in percent.
        source: the paper.
    """

    name: str
    mean_average_precision: float
    mean_iou: float
    source: str


HEADER = ("Method", "Timing", "Normalization", "mAP", "mIoU")


def table(model: str, figures: Sequence[Figures], published: Sequence[Published]) -> list[tuple[str, ...]]:
    """The rows under `HEADER`, figures in percent; the papers' own rows come last."""
    ours: list[tuple[str, ...]] = [
        (
            f"{model}, {line.method}",
            line.timing,
            line.normalization,
            f"{100 * line.score.mean_average_precision:.1f}",
            f"{100 * line.score.mean_iou:.1f}",
        )
        for line in figures
    ]
    theirs: list[tuple[str, ...]] = [
        (f"{row.name} (as published: {row.source})", "not stated", "not stated",
         f"{row.mean_average_precision:.1f}", f"{row.mean_iou:.1f}")
        for row in published
    ]  # fmt: skip
    return ours + theirs


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(("Method", "mAP"), [("legrad", "48.0")]))
    | Method   |   mAP |
    |:---------|------:|
    | legrad   |  48.0 |
    """
    return _tabulate(header, rows, "pipe")


def _tabulate(header: Sequence[str], rows: Sequence[Sequence[str]], table_format: str) -> str:
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    align = ["right" if all(map(_is_number, column)) else "left" for column in columns]
    # the cells are formatted already
    return tabulate(rows, header, tablefmt=table_format, disable_numparse=True, colalign=align)


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in LaTeX, for the booktabs package."""
    return _tabulate(header, rows, "latex_booktabs")


# ------------------------------------------------------------------ the page

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
    content: dict[str, Any],
    records: Records,
    figures: Sequence[Figures],
    published: Sequence[Published],
    image: Callable[[str], Image.Image],
) -> None:
    """Writes the report, a self-contained page.

    Args:
        path: of the file.
        content: what `results.json` holds.
        records: the run's results.
        figures: the lines of the table.
        published: the papers' lines.
        image: returns the evaluated square of an image by its name.
    """
    rows = table(content["model"]["name"], figures, published)
    title = f"{content['benchmark']}: {content['model']['name']}"
    data, problems = content["data"], content["problems"]
    counts = ", ".join(f"{count} {kind}" for kind, count in problems["counts"].items()) or "none"
    listed = "".join(f"<li>row {p['row']}: {_text(p['kind'])}: {_text(p['message'])}</li>" for p in problems["rows"])
    settings = {key: content[key] for key in ("arguments", "model", "data", "versions", "device")}
    body = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{_text(title)}</title><style>{STYLE}</style></head><body>
<h1>{_text(title)}</h1>
<p>{data["evaluated_items"]} of {data["rows"]} rows evaluated, {data["classes"]} classes. Figures in percent, means over
classes. Rows in italics are published figures, measured on the original data.</p>
{_html_table(HEADER, rows, len(figures))}
<h2>Precision and recall</h2><p>Mean over classes.</p>{_curves(figures)}
<h2>Best and worst classes</h2>{_extremes(figures[0], class_names(records))}
<h2>Images</h2><p>From the best class to the worst; each heatmap min-max normalized.</p>
{_images(records, figures[0], data["side"], image)}
<h2>Problems with the data</h2><p>{_text(counts)}</p><details><summary>By row</summary><ul>{listed}</ul></details>
<h2>Settings</h2><pre>{_text(_indented(settings))}</pre>
</body></html>
"""
    write_atomic(path, body.encode())


def _text(text: str) -> str:
    return html.escape(text)


def _indented(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1)


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_ours: int) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td{' class=number' if _is_number(c) else ''}>{_text(c)}</td>" for c in row)
        lines.append(f"<tr{' class=published' if place >= num_ours else ''}>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _extremes(line: Figures, names: dict[int, str]) -> str:
    known = [(c, s) for c, s in line.score.classes.items() if not np.isnan(s.average_precision)]
    known.sort(key=lambda entry: (-entry[1].average_precision, entry[0]))
    header = ("Class", "Images", "AP", "IoU")
    rows = [(names[c], str(s.num_images), f"{100 * s.average_precision:.1f}", f"{100 * s.iou:.1f}") for c, s in known]
    count = min(NUM_EXTREMES, len(rows))
    best, worst = rows[:count], rows[::-1][:count]
    return (
        f"<p>By average precision of {_text(line.method)} ({line.timing}, {line.normalization}).</p><div class=tables>"
        f"<div><h3>Best</h3>{_html_table(header, best, count)}</div>"
        f"<div><h3>Worst</h3>{_html_table(header, worst, count)}</div></div>"
    )


def _curves(figures: Sequence[Figures]) -> str:
    from matplotlib.figure import Figure

    normalizations = list(dict.fromkeys(line.normalization for line in figures))
    figure = Figure(figsize=(5.5 * len(normalizations), 4.2), layout="constrained")
    for place, normalization in enumerate(normalizations):
        axes = figure.add_subplot(1, len(normalizations), place + 1)
        for line in figures:
            if line.normalization == normalization:
                style = "--" if line.timing == "advanced" else "-"
                color = f"C{list(dict.fromkeys(f.method for f in figures)).index(line.method)}"
                axes.plot(
                    RECALL_LEVELS,
                    line.score.precision,
                    style,
                    color=color,
                    label=f"{line.method}, {line.timing}",
                )
        axes.set(
            xlabel="recall",
            ylabel="precision",
            xlim=(0, 1),
            ylim=(0, 1),
            title=f"normalization: {normalization}",
        )
        axes.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return _inline(Image.open(stream).convert("RGB"), "precision-recall curves")


def _images(records: Records, line: Figures, side: int, load: Callable[[str], Image.Image]) -> str:
    """One image from each of some classes: as it is, with the ground truth, and with each method's heatmap."""
    from matplotlib import colormaps

    classes = [c for c, s in line.score.classes.items() if not np.isnan(s.average_precision)]
    classes.sort(key=lambda c: (-line.score.classes[c].average_precision, c))
    spread = np.unique(np.linspace(0, len(classes) - 1, min(NUM_IMAGES, len(classes))).round().astype(int))
    rows = []
    for place in spread:
        index = int(np.flatnonzero(records.class_ids == classes[place])[0])
        name = str(records.class_names[index])
        try:
            image = load(str(records.images[index]))
        except MediaError:  # the data may have been taken away since the images were evaluated
            image = Image.new("RGB", (side, side), "white")
        grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255
        mask = unpack_masks(records.masks[index : index + 1], side)[0]
        tiles = {
            name: np.asarray(image),
            "ground truth": _blend(grey, np.where(mask[..., None], MASK_COLOR, grey)),
        }
        for method, maps in records.maps.items():
            heatmap = heatmaps(maps[index : index + 1, 0], "image", side, 0.0, 1.0)[0].numpy()
            tiles[method] = _blend(grey, colormaps["turbo"](heatmap)[..., :3])
        cells = (f"<figure>{_inline(Image.fromarray(t), c)}<figcaption>{_text(c)}</figcaption></figure>"
                 for c, t in tiles.items())  # fmt: skip
        rows.append(f"<div class=images>{''.join(cells)}</div>")
    return "\n".join(rows)


def _blend(grey: Array, colors: Array) -> Array:
    blended: Array = (255 * (0.4 * grey + 0.6 * colors)).round().astype(np.uint8)
    return blended


def _inline(image: Image.Image, description: str) -> str:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=88)
    content = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{_text(description)}" src="data:image/jpeg;base64,{content}">'
