"""`avgrad calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avgrad.cli import app, note
from avgrad.errors import InputError, UnsupportedModelError


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A model of `avgrad models`.")],
    images: Annotated[Path, typer.Option(help="Folder with a folder of images for each class, named as the class.")],
    sounds: Annotated[
        Path | None, typer.Option(help="Folder with a folder of sounds for each of these classes.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File with the model's weights.")] = None,
    template: Annotated[str, typer.Option(help="Text around the name of a class.")] = "{}",
    diagram: Annotated[Path | None, typer.Option(help="Write a reliability diagram into this PNG.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64, or auto: bfloat16 where it is faster.")
    ] = "auto",
) -> None:
    """Fits the probability that a prompt is in an image to images (and sounds) of known classes.

    Half of each class's images, and of its sounds, are for fitting; ROC-AUC and calibration error are of the others.
    """
    from rich.console import Console
    from rich.table import Table

    from avgrad.calibration import calibrate_model, reliability_diagram
    from avgrad.models.registry import load
    from avgrad.presence import write_calibrations

    towers = ["vision", "text", *(["audio"] if sounds else [])]
    loaded = load(model, checkpoint=checkpoint, device=device, dtype=dtype, towers=towers)
    for needed in towers[1:]:
        if needed not in loaded.modalities:
            raise UnsupportedModelError(f"{model} takes no {needed} prompts; there is nothing to calibrate")
    reports = calibrate_model(loaded, images, sounds, template)
    table = Table(title=model)
    for column in ("prompts", "pairs", "ROC-AUC", "calibration error"):
        table.add_column(column, justify="left" if column == "prompts" else "right")
    for modality, report in reports.items():
        table.add_row(modality, str(report.pairs), f"{report.roc_auc:.3f}", f"{report.error:.3f}")
    Console().print(table)
    try:
        path = write_calibrations(model, {modality: report.calibration for modality, report in reports.items()})
        if diagram is not None:
            reliability_diagram(reports, diagram)
    except OSError as error:
        raise InputError(f"{error.filename or diagram} cannot be written ({error.strerror or error})") from None
    note(f"written to {path}; `presence` of {model} uses it from now on")
