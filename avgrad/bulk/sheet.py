"""A contact sheet of what `avgrad find` found: one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from avgrad.bulk.find import Hit
from avgrad.files import write_atomic

if TYPE_CHECKING:
    from PIL import Image

SIDE = 480  # of the longer side of an image, in pixels

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #181b20; --faint: #5d6570; --line: #dde1e7; }
@media (prefers-color-scheme: dark) { :root { --paper: #111418; --card: #1a1f25; --ink: #e8eaee; --faint: #a0a9b5;
  --line: #2e353e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1440px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
p { margin: 0 0 1.5rem; color: var(--faint); }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .6rem; min-width: 0; }
img { display: block; width: 100%; height: auto; border-radius: 8px; }
figure { margin: 0 0 .5rem; }
figcaption { font-size: .85rem; color: var(--faint); overflow-wrap: anywhere; }
.head { display: flex; gap: .6rem; align-items: baseline; font-variant-numeric: tabular-nums; }
.head b { font-size: 1.1rem; }
.name { font-size: .85rem; color: var(--faint); overflow-wrap: anywhere; }
"""


def write_sheet(folder: Path, hits: Sequence[Hit], searched: int) -> Path:
    """Writes index.html: each image with the heatmap of each prompt over it.

    Args:
        folder: made where it is missing.
        hits: the images, the best one first.
        searched: the number of images that were searched.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = next((hit.result for hit in hits if hit.result is not None), None)
    asked = ", ".join(prompt.label for prompt in shown.prompts) if shown is not None else "nothing found"
    title = escape(asked.encode(errors="backslashreplace").decode())
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f"<main><h1>{title}</h1><p>The {len(hits)} best of {searched:,} images, by the mean cosine similarity of image "
        f"and prompts.</p><ol>{''.join(_entry(rank, hit) for rank, hit in enumerate(hits, start=1))}</ol></main></html>"
    )
    return write_atomic(folder / "index.html", page.encode(errors="backslashreplace"))


def _entry(rank: int, hit: Hit) -> str:
    head = f'<div class="head"><b>{rank}</b><span>score {hit.score:.3f}</span><span>row {hit.row}</span></div>'
    if hit.result is None:
        return f'<li>{head}<p class="name">{escape(hit.id)}: {escape(hit.error)}</p></li>'
    small = hit.result.resized(SIDE)
    figures = []
    for index, (prompt, score) in enumerate(zip(small.prompts, small.scores.tolist(), strict=True)):
        label = escape(prompt.label)
        caption = f"<figcaption>{label}: {score:.3f}</figcaption>" if len(small.prompts) > 1 else ""
        alt = f"{escape(hit.id)}, heatmap of {label}"
        figures.append(
            f'<figure><img src="{_data(small.overlay(index))}" alt="{alt}" loading="lazy">{caption}</figure>'
        )
    return f'<li>{"".join(figures)}{head}<div class="name">{escape(hit.id)}</div></li>'


def _data(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
