"""`avgrad models` and `avgrad download`."""

from __future__ import annotations

from typing import Annotated

import typer

from avgrad.cli import app
from avgrad.errors import InputError


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Of names, such as 'open_clip:*B-16*' or 'timm:vit_*'.")] = "*",
    refused: Annotated[
        bool, typer.Option("--refused", help="List the models that cannot be explained instead, and why.")
    ] = False,
) -> None:
    """Lists the models that can be loaded, and whether their weights are here."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from avgrad.models import registry

    rows: list[tuple[str, ...]]
    if refused:
        columns: tuple[str, ...] = ("model", "reason")
        rows = list(registry.refused(pattern))
    else:
        columns = ("model", "prompts", "weights")
        rows = [(entry.name, ", ".join(entry.modalities), entry.weights) for entry in registry.entries(pattern)]
    if not rows:
        raise InputError(f"no model {'that is refused ' if refused else ''}matches {pattern!r}; '*' lists all")
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="imagebind_huge")] = "imagebind_huge",
) -> None:
    """Fetches the official ImageBind checkpoint (its weights are CC-BY-NC 4.0: not for commercial use)."""
    if model != "imagebind_huge":
        raise InputError(
            f"{model} needs no download: mini is bundled, and the libraries fetch their own models when first used"
        )
    from avgrad.models.download import download_imagebind

    download_imagebind()
