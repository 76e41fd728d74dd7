"""`avgrad localize` for many images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from avgrad.cli import check_folder, note
from avgrad.cli.localize import chosen_model, method_options
from avgrad.errors import InputError, out_of_memory


def localize_collection(
    sources: Sequence[str],
    prompts: Mapping[str, Any],
    *,
    model: str | None,
    checkpoint: Path | None,
    out: Path,
    method: Sequence[str],
    option: Sequence[str],
    layers: str,
    layers_grid: bool,
    pooling: Literal["mean", "cls"],
    size: int | None,
    overlays: int,
    heatmaps: bool,
    device: str,
    dtype: str,
    batch_size: int,
    workers: int,
    shard_size: int,
    ray: str | None,
) -> None:
    """Locates prompts in a collection, with a progress bar; the arguments are those of the command.

    Raises:
        InputError: a wrong argument.
    """
    check_folder(out, "--out")
    if len(set(method)) > 1 or layers_grid:
        raise InputError("several methods and --layers-grid are for one image; a run has one --method")
    from avgrad.bulk.localize import localize_all
    from avgrad.bulk.overlays import save_overlays
    from avgrad.encoders.text import check_templates, check_texts
    from avgrad.engine.methods import check_options, parse_layers
    from avgrad.localizer import Localizer
    from avgrad.models.registry import load

    name = method[0]
    options = method_options([name], option)[name]
    check_options(name, options)
    which = parse_layers(layers)
    check_texts(prompts["text"] or [])
    check_templates(prompts["templates"])
    # rows of a table may have prompts of any modality, so all towers are loaded; of Ray, actors move theirs to the device
    loaded = load(chosen_model(model, checkpoint), checkpoint=checkpoint, device="cpu" if ray else device, dtype=dtype)
    localizer = Localizer(loaded, method=name, layers=which, pooling=pooling, size=size, keep=False, **options)
    run = localize_all(
        localizer,
        sources,
        out,
        **prompts,
        batch_size=batch_size,
        workers=workers,
        shard_size=shard_size,
        ray=ray,
        device=device,
        checkpoint=checkpoint,
        progress=True,
    )
    problems = run.errors()
    if overlays or heatmaps:
        try:
            problems += save_overlays(run, overlays=overlays, heatmaps=heatmaps, workers=workers, progress=True)
        except OSError as error:
            if out_of_memory(error):
                raise
            raise InputError(f"--out {out} cannot be written ({error.strerror or error})") from None
    for row, message in problems[:10]:
        note(f"row {row}: {message}")
    if len(problems) > 10:
        note(f"and {len(problems) - 10} more rows with errors; see the column 'error'")
    print(f"{len(run) - len(problems)} of {len(run)} images, written to {out}")
