"""Prompts located in a whole collection of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avgrad.bulk.folder import MANIFEST, RunFolder, make_manifest
from avgrad.bulk.item import Item
from avgrad.bulk.run import Run
from avgrad.bulk.shard import Explainer
from avgrad.bulk.sources import list_items
from avgrad.encoders.text import check_templates
from avgrad.errors import InputError, out_of_memory
from avgrad.localizer import Localizer
from avgrad.models.devices import cpu_threads
from avgrad.prompts import Prompt
from avgrad.settings import at_least
from avgrad.stream import computed_ahead

if TYPE_CHECKING:
    from avgrad.localizer import AudioSource, ImageSource

SHARD_SIZE = 512


def localize_all(
    localizer: Localizer,
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    audio: AudioSource | Iterable[AudioSource] | None = None,
    text: str | Iterable[str] | None = None,
    speech: AudioSource | Iterable[AudioSource] | None = None,
    image: ImageSource | Iterable[ImageSource] | None = None,
    prompts: Prompt | Iterable[Prompt] | None = None,
    templates: str | Sequence[str] = "{}",
    batch_size: int = 16,
    workers: int = 2,
    shard_size: int = SHARD_SIZE,
    ray: str | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Run:
    """Locates prompts in every image of a collection, and keeps the results in a folder.

    Called again with the same arguments, it goes on where it was ended, however that was. An image that cannot be read
    is a row with an error. Rows depend neither on `workers` nor on `ray`, nor on interruptions.

    Args:
        localizer: model and settings.
        sources: image files, folders, globs, manifests (.csv, .jsonl, .parquet) with prompts of their own in each row,
            WebDataset shards (.tar), Hugging Face datasets on disk; see `avgrad.bulk.sources`.
        out: the run's folder, new or of this run.
        audio, text, speech, image, prompts: what to look for in every image, as in `Localizer.localize`. Without any,
            and without prompts of rows, image embeddings alone are kept, for `avgrad.find`.
        templates: as there; for the texts of manifests, too.
        batch_size: the largest number of images in a forward pass. Images of different shapes do not share one.
        workers: threads that decode images; of Ray, decoding is scheduled by itself.
        shard_size: images per file of results, and how much is lost when the run is killed.
        ray: None for this process; "local" for a Ray cluster on this machine, or the address of one. Images and `out`
            must be reachable under the same paths from all of its nodes.
        device: where Ray's actors compute; the model's own by default.
        checkpoint: the file of the model's weights, kept for `avgrad.find`.
        progress: show a progress bar with the time left.

    Returns:
        The finished run.

    Raises:
        InputError: a wrong argument, a source that cannot be read, or a folder that holds something else.
    """
    numbers = {"batch_size": batch_size, "workers": workers, "shard_size": shard_size}
    batch_size, workers, shard_size = (at_least(name, value) for name, value in numbers.items())
    items = list_items([sources] if isinstance(sources, str | os.PathLike) else sources)
    templates = check_templates(templates)
    sources_of_prompts = {"audio": audio, "text": text, "speech": speech, "image": image}
    threads = _threads(Path(out))
    with cpu_threads(threads):
        found = localizer.checked_prompts(prompts, {**sources_of_prompts, "templates": templates}, required=False)
        explainer = Explainer(localizer.settings, localizer.size, found, templates, batch_size)
        weights = None if checkpoint is None else os.path.abspath(checkpoint)
        manifest = make_manifest(explainer, items, shard_size, threads, weights, device if ray else None)
        folder = RunFolder.begin(Path(out), manifest, explainer)
        explainer = replace(explainer, prompts=folder.prompts())
        try:
            if ray is None:
                _run_here(explainer, folder, items, workers, progress)
            else:
                from avgrad.bulk.ray_backend import run_on_ray

                run_on_ray(explainer, folder, items, ray, str(device or localizer.model.device), progress)
            folder.tidy()
        except OSError as error:
            if out_of_memory(error):
                raise
            raise InputError(f"{out} cannot be written ({error.strerror or error})") from None
    return Run(folder)


def _threads(out: Path) -> int:
    """The CPU threads that a run was begun with, on which the last bits of its rows depend; torch's of a new run."""
    threads = RunFolder.open(out).manifest.get("threads") if (out / MANIFEST).is_file() else None
    return threads if isinstance(threads, int) and threads > 0 else torch.get_num_threads()


def _run_here(explainer: Explainer, folder: RunFolder, items: Sequence[Item], workers: int, progress: bool) -> None:
    """Computes the shards that are missing, in this process: images are decoded ahead, across shards."""
    bounds = {number: folder.bounds(number) for number in folder.missing()}

    def missing() -> Iterator[Item]:
        for start, stop in bounds.values():
            yield from items[start:stop]

    ahead = 2 * explainer.batch_size + workers
    decoded = computed_ahead(explainer.decoder, missing(), ahead, workers)
    left = sum(stop - start for start, stop in bounds.values())
    with _bar(len(items), len(items) - left) if progress else nullcontext() as bar:
        try:
            for number, (start, stop) in bounds.items():
                images = islice(decoded, stop - start)
                done = (lambda count: None) if bar is None else bar.update
                folder.write(number, explainer.table(start, items[start:stop], images, done))
        finally:
            decoded.close()


def _bar(total: int, done: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc="images", unit="image", smoothing=0.05)
