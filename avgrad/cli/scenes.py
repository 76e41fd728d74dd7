"""`avgrad scenes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from avgrad.cli import app
from avgrad.errors import InputError


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist.")],
    n: Annotated[int, typer.Option(help="Number of scenes.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of all scenes; scene i depends on the seed and i alone.", min=0)] = 0,
    prompt: Annotated[Literal["sound", "speech"], typer.Option(help="What the prompts are.")] = "sound",
) -> None:
    """Writes synthetic scenes with exact masks in the layout of the ADE20K Sound- and Speech-Prompted data sets."""
    from avgrad.scenes.dataset import write_dataset

    try:
        write_dataset(out, n, seed, prompt)
    except OSError as error:
        raise InputError(f"OUT {out} cannot be written ({error.strerror or error})") from None
