"""`avgrad localize` for many images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from avgrad.cli import note
from avgrad.cli.localize import Request
from avgrad.errors import InputError, out_of_memory


def localize_collection(
    request: Request,
    sources: Sequence[str],
    overlays: int,
    heatmaps: bool,
    *,
    batch_size: int,
    workers: int,
    shard_size: int,
    ray: str | None,
) -> None:
    """Locates prompts in a collection, with a progress bar.

    Args:
        request: what was asked for.
        sources: the collection.
        overlays, heatmaps: what `save_overlays` is to write.
        batch_size, workers, shard_size, ray: as in `localize_all`.

    Raises:
        InputError: a wrong argument.
    """
    if len(request.methods) > 1:
        raise InputError("several methods are for one image; a run has one --method")
    if request.refine is not None and not (overlays or heatmaps):
        raise InputError("--refine changes overlays and heatmaps; give --overlays N or --heatmaps, too")
    from avgrad.bulk.localize import localize_all
    from avgrad.bulk.overlays import save_overlays

    # rows of a table may have prompts of any modality; of Ray, the actors move the model to the device
    model = (replace(request, device="cpu") if ray else request).load(all_towers=True)
    (method,) = request.methods
    run = localize_all(
        request.localizer(model, method),
        sources,
        request.out,
        **request.prompts,
        batch_size=batch_size,
        workers=workers,
        shard_size=shard_size,
        ray=ray,
        device=request.device,
        checkpoint=request.checkpoint,
        progress=True,
    )
    problems = run.errors()
    if overlays or heatmaps:
        try:
            problems += save_overlays(
                run, overlays=overlays, heatmaps=heatmaps, refine=request.refine, workers=workers, progress=True
            )
        except OSError as error:
            if out_of_memory(error):
                raise
            raise InputError(f"--out {request.out} cannot be written ({error.strerror or error})") from None
    for row, message in problems[:10]:
        note(f"row {row}: {message}")
    if len(problems) > 10:
        note(f"and {len(problems) - 10} more rows with errors; see the column 'error'")
    print(f"{len(run) - len(problems)} of {len(run)} images, written to {request.out}")
