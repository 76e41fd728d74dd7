"""`avgrad scenes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avgrad.cli import app
from avgrad.errors import InputError


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist.")],
    layout: Annotated[
        str, typer.Option(help="On-disk layout of a benchmark: a name in `python -m eval list`.")
    ] = "ade20k-sound",
    n: Annotated[int, typer.Option(help="Number of scenes.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of all scenes; scene i depends on the seed and i alone.", min=0)] = 0,
) -> None:
    """Writes synthetic scenes with exact masks, sounds and speech in the layout of a benchmark's data."""
    from avgrad.scenes.layouts import write_dataset

    try:
        write_dataset(out, layout, n, seed)
    except OSError as error:
        raise InputError(f"OUT {out} cannot be written ({error.strerror or error})") from None
