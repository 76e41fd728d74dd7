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
    model: Annotated[
        str, typer.Argument(help="imagebind_huge, or a PE-AV model such as pe-av-base.")
    ] = "imagebind_huge",
) -> None:
    """Fetches a published model: ImageBind (CC-BY-NC 4.0: not for commercial use), or one of PE-AV (Apache-2.0)."""
    from avgrad.models import pe_av_files

    if model in pe_av_files.NAMES:
        folder = pe_av_files.download(model)
        print(f"{model} is in {folder}; its weights are licensed Apache-2.0")
        return
    if model != "imagebind_huge":
        raise InputError(
            f"{model} needs no download: mini is bundled, and the libraries fetch their own models when first used"
        )
    from avgrad.models.download import download_imagebind

    download_imagebind()
