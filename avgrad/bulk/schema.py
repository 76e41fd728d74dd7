"""The rows of a run: their Arrow schema, and tables of them.

| column | type | what |
|---|---|---|
| `row` | int64 | place in the collection, from 0 |
| `id` | string | what the collection calls the image |
| `path` | string | the image's file |
| `offset`, `length` | int64 | the range of bytes where the image is a part of the file |
| `error` | string | why the image or a prompt of its row cannot be read; all columns below are null then |
| `width`, `height` | int32 | of the image in pixels |
| `embedding` | list<float16> | unit-norm image embedding `[D]` |
| `grid_width`, `grid_height` | int16 | of the patch grid |
| `prompts` | list<struct> | one per prompt |

Each of `prompts` has

| field | type | what |
|---|---|---|
| `label`, `modality` | string | of the prompt |
| `score` | float32 | cosine similarity of image and prompt |
| `peak` | struct<x, y: int32> | the hottest pixel of the heatmap |
| `box` | struct<x0, y0, x1, y1: int32> | around the largest part of the heatmap's mask at 0.5; null where it is empty |
| `scale` | float32 | the largest absolute value of the raw map |
| `map` | list<float16> | the raw map divided by `scale`, row by row |
| `embedding` | list<float16> | of a prompt of the row's own; null for the prompts of all rows |

Box and peak are those of the map as it is stored. A box is found on a heatmap of at most `BOX_SIDE` pixels a side and
rounded outwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from avgrad.bulk.item import Item
from avgrad.engine.attribute import normalized
from avgrad.localization import hottest_pixels, part_boxes
from avgrad.prompts import Prompt

BOX_SIDE = 256
THRESHOLD = 0.5

PEAK = pa.struct([("x", pa.int32()), ("y", pa.int32())])
BOX = pa.struct([(name, pa.int32()) for name in ("x0", "y0", "x1", "y1")])
PROMPT = pa.struct(
    [
        ("label", pa.string()),
        ("modality", pa.string()),
        ("score", pa.float32()),
        ("peak", PEAK),
        ("box", BOX),
        ("scale", pa.float32()),
        ("map", pa.list_(pa.float16())),
        ("embedding", pa.list_(pa.float16())),
    ]
)
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("error", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("embedding", pa.list_(pa.float16())),
        ("grid_width", pa.int16()),
        ("grid_height", pa.int16()),
        ("prompts", pa.list_(PROMPT)),
    ]
)


@dataclass(frozen=True)
class Row:
    """What is kept of one image.

    Attributes:
        size: width and height of the image; None where it cannot be read.
        error: why; empty where it can.
        embedding: `[D]`, float16.
        grid: height and width of the patch grid.
        prompts: the values of the column `prompts`.
    """

    size: tuple[int, int] | None = None
    error: str = ""
    embedding: np.ndarray | None = None
    grid: tuple[int, int] | None = None
    prompts: Sequence[dict[str, Any]] = field(default=())


def prompt_values(
    prompts: Sequence[Prompt],
    own: int,
    scores: torch.Tensor,
    maps: torch.Tensor,
    size: tuple[int, int],
    normalized_first: bool,
) -> list[dict[str, Any]]:
    """The values of the column `prompts` for one image.

    Args:
        prompts: the P prompts, the last `own` of them the row's own.
        own: whose embeddings are kept.
        scores: `[P]`.
        maps: raw maps `[P, gh, gw]`.
        size: width and height of the image.
        normalized_first: as in `Localization`.
    """
    scales = maps.abs().amax((-2, -1))
    halves = (maps / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None]).half()
    kept = halves.float()
    peaks = hottest_pixels(kept, (size[1], size[0]))
    boxes = _boxes(kept, size, normalized_first)
    flat = halves.flatten(1).numpy()
    return [
        {
            "label": printable_label(prompt.label),
            "modality": prompt.modality,
            "score": float(scores[index]),
            "peak": dict(zip(("x", "y"), peaks[index], strict=True)),
            "box": boxes[index],
            "scale": float(scales[index]),
            "map": flat[index],
            "embedding": prompt.embedding.half().numpy() if index >= len(prompts) - own else None,
        }
        for index, prompt in enumerate(prompts)
    ]


def printable_label(label: str) -> str:
    """A label without what UTF-8 cannot express."""
    return label.encode(errors="backslashreplace").decode()


def _boxes(maps: torch.Tensor, size: tuple[int, int], first: bool) -> list[dict[str, int] | None]:
    """The largest box of each map `[P, gh, gw]` in an image of this width and height."""
    width, height = size
    scale = min(1.0, BOX_SIDE / max(size))
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    heat = normalized(maps[None], (rows, columns), first)[0].numpy()
    boxes: list[dict[str, int] | None] = []
    for one in heat:
        parts = part_boxes(one >= THRESHOLD)
        if not parts:
            boxes.append(None)
            continue
        x0, y0, x1, y1 = parts[0]
        boxes.append(
            {
                "x0": x0 * width // columns,
                "y0": y0 * height // rows,
                "x1": math.ceil(x1 * width / columns),
                "y1": math.ceil(y1 * height / rows),
            }
        )
    return boxes


def table(first: int, items: Sequence[Item], rows: Sequence[Row]) -> pa.Table:
    """The rows of consecutive items, with the schema `SCHEMA`.

    Args:
        first: place of the first one in the collection.
        items, rows: of the same length.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for number, (item, row) in enumerate(zip(items, rows, strict=True), start=first):
        values = {
            "row": number,
            "id": item.id,
            "path": printable_label(item.path),
            "offset": item.offset,
            "length": item.length,
            "error": row.error or None,
            "width": row.size and row.size[0],
            "height": row.size and row.size[1],
            "embedding": row.embedding,
            "grid_width": row.grid and row.grid[1],
            "grid_height": row.grid and row.grid[0],
            "prompts": None if row.error else list(row.prompts),
        }
        for name, value in values.items():
            columns[name].append(value)
    return pa.table(columns, schema=SCHEMA)
