"""Overlays and full heatmaps of a run, on request: drawn from its rows, one folder per image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from avgrad.bulk.run import Run
from avgrad.errors import MediaError
from avgrad.stream import computed_ahead


def save_overlays(
    run: Run,
    *,
    overlays: int,
    heatmaps: bool = False,
    refine: str | None = None,
    workers: int = 2,
    progress: bool = False,
) -> list[tuple[int, str]]:
    """Writes each row by `Localization.save` into RUN/results/ROW; folders that are complete stay as they are.

    Args:
        run: a run.
        overlays: of so many prompts of each image.
        heatmaps: also heatmaps of the image's size.
        refine: the method of `Localization.refine`; None for none.
        workers: threads.
        progress: show a progress bar.

    Returns:
        Row and message of each image that cannot be read any more.

    Raises:
        OSError: a folder cannot be written.
    """
    from tqdm import tqdm

    def rows() -> Iterator[dict[str, Any]]:
        for shard in run.shards():
            yield from run.rows(shard)

    def save(row: dict[str, Any]) -> tuple[int, str] | None:
        folder = results_folder(run, row["row"])
        if row["error"] is not None or (folder / "result.json").exists():
            return None
        try:
            result = run.localization(row)
            result = result if refine is None else result.refine(refine)
            result.save(folder, overlays=overlays, heatmaps=heatmaps)
        except MediaError as error:
            return row["row"], str(error)
        return None

    failed = []
    with tqdm(total=len(run), desc="overlays", unit="image") if progress else nullcontext() as bar:
        for problem in computed_ahead(save, rows(), 2 * workers, workers):
            failed += [] if problem is None else [problem]
            if bar is not None:
                bar.update()
    return failed


def results_folder(run: Run, row: int) -> Path:
    """Where `save_overlays` writes a row."""
    return run.folder.path / "results" / f"{row:09d}"
