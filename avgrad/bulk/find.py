"""Searching a run: which images prompts fit best, and where in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from avgrad.bulk.index import build_index, nearest
from avgrad.bulk.run import Run, read_run
from avgrad.engine.methods import parse_option
from avgrad.errors import InputError, MediaError
from avgrad.localization import Localization
from avgrad.localizer import Localizer
from avgrad.media import as_list
from avgrad.models.model import Model
from avgrad.models.registry import load
from avgrad.prompts import Prompt
from avgrad.settings import at_least

if TYPE_CHECKING:
    from avgrad.localizer import AudioSource, ImageSource


@dataclass(frozen=True, eq=False)
class Hit:
    """An image that was found.

    Attributes:
        row: its place in the run.
        id: what the collection calls it.
        score: the mean of the prompts' cosine similarities with it.
        result: where the prompts are in it; None where the image cannot be read any more, or `explain` was False.
        error: why it cannot be read; empty where it can.
    """

    row: int
    id: str
    score: float
    result: Localization | None = None
    error: str = ""


def find(
    run: Run | str | os.PathLike[str],
    *,
    audio: AudioSource | Iterable[AudioSource] | None = None,
    text: str | Iterable[str] | None = None,
    speech: AudioSource | Iterable[AudioSource] | None = None,
    image: ImageSource | Iterable[ImageSource] | None = None,
    prompts: Prompt | Iterable[Prompt] | None = None,
    templates: str | Sequence[str] = "{}",
    top: int = 20,
    model: Model | None = None,
    device: torch.device | str = "cpu",
    explain: bool = True,
) -> list[Hit]:
    """The images of a run that prompts fit best.

    Every image is compared, by its embedding as the run keeps it (float16). Only the images that are found are read and
    explained, by the method of the run. The first search writes RUN/embeddings.arrow, which further ones map into
    memory. For much more than ten million images, export that file to a vector index (LanceDB and FAISS read it).

    Args:
        run: a run, or its folder. Prompts need not be those of the run.
        audio, text, speech, image, prompts, templates: what to look for, as in `Localizer.localize`. Images are ranked
            by the mean of the prompts' scores.
        top: how many images.
        model: the run's model; loaded by its name by default.
        device: where it is loaded.
        explain: locate the prompts in the images that were found.

    Returns:
        The images, the best one first.

    Raises:
        InputError: there is no such run, or a wrong argument.
        MediaError, PromptError, UnsupportedModelError, CheckpointError: as `Localizer`.
    """
    run = run if isinstance(run, Run) else read_run(run)
    top = at_least("top", top)
    sources = {"audio": audio, "text": text, "speech": speech, "image": image}
    if model is None:
        about = run.manifest["model"]
        needed = {"audio": bool(as_list(audio) or as_list(speech)), "text": bool(as_list(text))}
        towers = ["vision", *(tower for tower, wanted in needed.items() if wanted)]
        model = load(about["name"], checkpoint=about["checkpoint"], device=device, dtype=about["dtype"], towers=towers)
    elif model.name != run.manifest["model"]["name"]:
        raise InputError(f"model is {model.name}, and {run.folder.path} was made with {run.manifest['model']['name']}")
    localizer = localizer_of(run, model)
    given = localizer.checked_prompts(prompts, {**sources, "templates": templates})
    query = torch.stack([prompt.direction for prompt in given]).mean(0)
    scores, rows = nearest(build_index(run.folder), query, top)
    hits = []
    for score, number in zip(scores.tolist(), rows.tolist(), strict=True):
        row = run.row(number)
        hits.append(_explained(localizer, run, row, score, given) if explain else Hit(number, row["id"], score))
    return hits


def _explained(localizer: Localizer, run: Run, row: dict[str, Any], score: float, prompts: list[Prompt]) -> Hit:
    try:
        localizer.set_image(run.image(row))
    except MediaError as error:
        return Hit(row["row"], row["id"], score, error=str(error))
    return Hit(row["row"], row["id"], score, replace(localizer.localize(prompts=prompts), name=row["id"]))


def localizer_of(run: Run, model: Model) -> Localizer:
    """A Localizer with the settings of a run."""
    manifest = run.manifest
    options = dict(manifest["options"])
    fixed = {name: options.pop(name) for name in ("pooling", "size", "correction")}
    own = dict(
        parse_option(manifest["method"], f"{name}={value.removeprefix('torch.')}")
        if isinstance(value, str)
        else (name, value)
        for name, value in options.items()
    )
    return Localizer(model, method=manifest["method"], layers=manifest["layers"], keep=False, **fixed, **own)
