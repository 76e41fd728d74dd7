"""The figures of a finished run: `results.json` and `per_class.csv`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avgrad.engine.attribute import min_max, upsample
from avgrad.files import write_atomic
from eval.dataset import DataError
from eval.metrics import ClassScore, SegmentationScore, score_class
from eval.runner import cpu_threads
from eval.store import Array, Records, RunFolder

Normalization = Literal["dataset", "image"]
NORMALIZATIONS: tuple[Normalization, ...] = ("dataset", "image")


@dataclass(frozen=True)
class Figures:
    """One row of the table.

    Attributes:
        method: attribution method.
        timing: the part of the prompts that was used.
        normalization: over the data set, or of each map.
        score: per class, and the means.
    """

    method: str
    timing: str
    normalization: Normalization
    score: SegmentationScore


def unpack_masks(packed: Array, side: int) -> Array:
    """Boolean masks `[N, side, side]` from their packed form."""
    bits = np.unpackbits(packed, axis=1, count=side * side)
    return bits.astype(bool).reshape(-1, side, side)


def heatmaps(raw: Array, normalization: Normalization, side: int, low: float, high: float) -> Tensor:
    """Heatmaps as they are scored.

    Args:
        raw: on the patch grid, `[N, gh, gw]`.
        normalization: "dataset": min-max over the data set, before the maps are upsampled (DenseAV); "image":
            min-max of each upsampled map (LeGrad).
        side: height and width of the upsampled maps.
        low, high: smallest and largest raw value of the data set.

    Returns:
        `[N, side, side]`, float32 in [0, 1].
    """
    maps = torch.from_numpy(raw)[:, None]
    if normalization == "dataset":
        maps = (maps - low) / max(high - low, torch.finfo(maps.dtype).tiny)
    maps = upsample(maps, (side, side))
    return (min_max(maps) if normalization == "image" else maps)[:, 0]


def score(
    records: Records, timings: Sequence[str], side: int, normalizations: Sequence[Normalization]
) -> list[Figures]:
    """Every row of the table; full-size heatmaps exist for one class per core at a time.

    Raises:
        DataError: there are no records.
    """
    if not len(records.rows):
        raise DataError(f"no item could be evaluated; {len(records.problems)} have problems")
    members = {int(c): np.flatnonzero(records.class_ids == c) for c in np.unique(records.class_ids)}
    with cpu_threads(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        return [
            Figures(method, timing, how, _score_line(pool, maps[:, place], records.masks, members, how, side))
            for method, maps in records.maps.items()
            for place, timing in enumerate(timings)
            for how in normalizations
        ]


def _score_line(
    pool: ThreadPoolExecutor,
    raw: Array,
    masks: Array,
    members: Mapping[int, Array],
    normalization: Normalization,
    side: int,
) -> SegmentationScore:
    low, high = float(raw.min()), float(raw.max())

    def score_members(chosen: Array) -> ClassScore:
        return score_class(heatmaps(raw[chosen], normalization, side, low, high), unpack_masks(masks[chosen], side))

    return SegmentationScore(dict(zip(members, pool.map(score_members, members.values()), strict=True)))


def class_names(records: Records) -> dict[int, str]:
    """The name of each class by its id."""
    return {int(c): str(name) for c, name in zip(records.class_ids, records.class_names, strict=True)}


def all_problems(manifest: dict[str, Any], records: Records) -> list[tuple[int, str, str]]:
    """Row, kind and message of every problem, in the order of the rows."""
    found = [tuple(problem) for problem in manifest["data"]["problems"]]
    found += [(problem.row, problem.kind, problem.message) for problem in records.problems]
    classes_without = {int(c) for c in np.unique(records.class_ids) if not records.masks[records.class_ids == c].any()}
    for row, class_id, name in zip(records.rows, records.class_ids, records.class_names, strict=True):
        if int(class_id) in classes_without:
            found.append((int(row), "class without pixels", f"{name} (class {class_id}) is left out of the means"))
    return sorted(found)


def write_results(folder: RunFolder, records: Records, figures: Sequence[Figures]) -> dict[str, Any]:
    """Writes `results.json` and `per_class.csv` into the run's folder.

    Returns:
        What `results.json` holds.
    """
    manifest, names = dict(folder.manifest), class_names(records)
    problems = all_problems(manifest, records)
    data = {key: value for key, value in manifest.pop("data").items() if key != "problems"}
    lines: list[dict[str, Any]] = [
        {
            "method": line.method,
            "timing": line.timing,
            "normalization": line.normalization,
            "mean_average_precision": _json(line.score.mean_average_precision),
            "mean_iou": _json(line.score.mean_iou),
            "mean_average_precision_as_published": _json(line.score.mean_average_precision_as_published),
            "mean_iou_as_published": _json(line.score.mean_iou_as_published),
            "classes": [
                {
                    "class_id": class_id,
                    "class_name": names[class_id],
                    "images": c.num_images,
                    "average_precision": _json(c.average_precision),
                    "iou": _json(c.iou),
                    "threshold": _json(c.threshold),
                }
                for class_id, c in line.score.classes.items()
            ],
        }
        for line in figures
    ]
    manifest["arguments"] = {
        **manifest["arguments"],
        "normalizations": list(dict.fromkeys(line.normalization for line in figures)),
    }
    content = {
        **manifest,
        "data": {
            **data,
            "content_fingerprint": hashlib.sha256(records.digests.tobytes()).hexdigest(),
            "evaluated_items": len(records.rows),
            "classes": len(names),
        },
        "results": lines,
        "problems": {
            "counts": dict(sorted(Counter(kind for _, kind, _ in problems).items())),
            "rows": [{"row": row, "kind": kind, "message": message} for row, kind, message in problems],
        },
    }
    write_atomic(folder.path / "results.json", (json.dumps(content, indent=1) + "\n").encode())

    table = io.StringIO()
    columns = ["method", "timing", "normalization", *lines[0]["classes"][0]]
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        for row in line["classes"]:
            writer.writerow({**{key: line[key] for key in columns[:3]}, **row})
    write_atomic(folder.path / "per_class.csv", table.getvalue().encode())
    return content


def _json(value: float) -> float | None:
    return None if np.isnan(value) else value
