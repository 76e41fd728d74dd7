"""`avgrad find`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avgrad.cli import app, check_folder
from avgrad.errors import InputError, out_of_memory


@app.command()
def find(
    run: Annotated[Path, typer.Argument(help="The --out of `avgrad localize` over many images.")],
    audio: Annotated[list[Path] | None, typer.Option(help="A sound to find; may be given several times.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to find; several times.")] = None,
    speech: Annotated[list[Path] | None, typer.Option(help="Recorded words to find; several times.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image of what to find; several times.")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Text around each text, as in 'a photo of a {}'; several are averaged.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many images.", min=1)] = 20,
    out: Annotated[Path, typer.Option(help="Folder for the contact sheet, index.html.")] = Path("avgrad_find"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    show: Annotated[bool, typer.Option("--open", help="Open the contact sheet in a browser.")] = False,
) -> None:
    """Ranks the images of a run by prompts; writes a contact sheet with heatmaps of the best."""
    if not (audio or text or speech or image):
        raise InputError("there is no prompt; give --audio FILE, --speech FILE, --text WORDS or --image FILE")
    check_folder(out, "--out")
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from avgrad.bulk.find import find as find_in
    from avgrad.bulk.run import read_run
    from avgrad.bulk.sheet import write_sheet

    opened = read_run(run)
    hits = find_in(
        opened,
        audio=audio,
        text=text,
        speech=speech,
        image=image,
        templates=template or "{}",
        top=top,
        device=device,
    )
    try:
        page = write_sheet(out, hits, len(opened))
    except OSError as error:
        if out_of_memory(error):
            raise
        raise InputError(f"--out {out} cannot be written ({error.strerror or error})") from None
    table = Table()
    for column, justify in (("", "right"), ("score", "right"), ("row", "right"), ("image", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for rank, hit in enumerate(hits, start=1):
        table.add_row(str(rank), f"{hit.score:.3f}", str(hit.row), escape(hit.id))
    Console().print(table)
    print(f"\nwritten to {page}")
    if show:
        typer.launch(page.resolve().as_uri())
