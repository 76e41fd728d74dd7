"""`avgrad demo` and `avgrad app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avgrad.cli import app, check_folder
from avgrad.errors import InputError


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the page and the images.")] = Path("avgrad_demo"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Looks for sounds, spoken words and texts in the sample scenes; writes a page and images (needs no network)."""
    check_folder(out, "OUT")
    from avgrad.demo import run

    try:
        result = run(out)
    except OSError as error:
        raise InputError(f"OUT {out} cannot be written ({error.strerror or error})") from None
    print(result)
    if show:
        typer.launch(result.page.resolve().as_uri())


@app.command("app")
def browser_page(
    port: Annotated[int, typer.Option(help="Where the page is served.", min=1, max=65535)] = 8501,
    address: Annotated[
        str, typer.Option(help="localhost: for this machine alone; 0.0.0.0: for the network.")
    ] = "localhost",
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serves the page on which one records or uploads a sound and looks where it is."""
    from avgrad.app.server import serve

    serve(port, address, show)
