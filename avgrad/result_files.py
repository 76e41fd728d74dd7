"""Results on disk: what `Localization.save` writes and `Localization.load` reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch

from avgrad.errors import InputError, MediaError
from avgrad.files import write_atomic
from avgrad.localization import Absent, Localization, file_words
from avgrad.media import load_image
from avgrad.prompts import Prompt

Result = TypeVar("Result", bound=Localization)
_MAX_JPEG = 65_500  # pixels of a side of a JPEG


def save(
    result: Localization,
    folder: Path,
    overlays: int | None,
    side: int,
    heatmaps: bool,
    absent: Absent | None,
    more: Mapping[str, Any],
) -> list[Path]:
    """Writes the files of a result; see `Localization.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = result.prompts[:overlays]
    small = result.resized(side)

    def write_overlay(index: int) -> Path:
        path = folder / f"overlay_{index}_{file_words(result.prompts[index].label)}.jpg"
        return write_atomic(path, partial(small.overlay(index, absent=absent).save, format="JPEG", quality=90))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        image = pool.submit(_save_image, result, folder)
        files = [*pool.map(write_overlay, range(len(shown))), image.result()]
    arrays = result.arrays(heatmaps)
    files.append(write_atomic(folder / "heatmaps.npz", lambda file: np.savez_compressed(file, **arrays)))
    files.append(write_atomic(folder / "result.json", result.to_json(image_file=image.result().name, **more)))
    return files


def _save_image(result: Localization, folder: Path) -> Path:
    if result.refinement or max(result.image.size) > _MAX_JPEG:  # refined heatmaps depend on every pixel
        return write_atomic(folder / "image.png", partial(result.image.save, format="PNG"))
    return write_atomic(folder / "image.jpg", partial(result.image.save, format="JPEG", quality=95))


def load(cls: type[Result], folder: Path) -> Result:
    """The result that a folder holds.

    Raises:
        InputError: the folder does not hold one, or it is damaged.
    """
    try:
        document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        with np.load(folder / "heatmaps.npz", allow_pickle=False) as file:
            maps, layer_maps, scores, embeddings = (
                torch.from_numpy(file[name]) for name in ("maps", "layer_maps", "scores", "embeddings")
            )
        image = load_image(folder / Path(document["image_file"]).name)
        prompts = [
            Prompt(embedding, entry["label"], entry["modality"])
            for embedding, entry in zip(embeddings, document["prompts"], strict=True)
        ]
        known = [entry["presence"] for entry in document["prompts"]]
        presence = torch.tensor([math.nan if value is None else value for value in known])
        kept = {name: document[name] for name in cls.kept}
        if not presence.isnan().all():
            kept["presence"] = presence
        return cls(image, prompts, scores, maps, layer_maps, **kept)
    except OSError as error:
        raise InputError(f"{folder} holds no result of Localization.save ({error.strerror})") from None
    except MediaError as error:
        raise InputError(f"{folder} holds a result of Localization.save without its image ({error})") from None
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(f"{folder} holds a damaged result of Localization.save ({error})") from error
