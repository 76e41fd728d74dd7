"""`avgrad describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avgrad.cli import app, note
from avgrad.errors import InputError, UnsupportedModelError


@app.command()
def describe(
    sounds: Annotated[list[Path], typer.Argument(metavar="SOUND...", help="The sounds.")],
    label: Annotated[
        list[str] | None, typer.Option(help="A name to choose from; several times. Default: everyday sounds.")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of names.", min=1)] = 5,
    model: Annotated[
        str | None, typer.Option(help="A model that takes sounds and texts. Default: as `avgrad localize`.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File with the model's weights.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the names into this file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64, or auto: bfloat16 where it is faster.")
    ] = "auto",
) -> None:
    """Names sounds: which of many labels fits each best."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from avgrad.cli.localize import default_model
    from avgrad.files import write_atomic
    from avgrad.models.naming import NamesSounds
    from avgrad.models.registry import load

    name = model or default_model(checkpoint)
    loaded = load(name, checkpoint=checkpoint, device=device, dtype=dtype, towers=["audio", "text"])
    if not isinstance(loaded, NamesSounds):
        raise UnsupportedModelError(f"{name} does not name sounds; a model that takes sounds and texts is needed")
    found = {str(sound): loaded.describe(sound, label or None, top) for sound in sounds}
    table = Table(title=name)
    table.add_column("sound")
    table.add_column("sounds like")
    for sound, names in found.items():
        words = ", ".join(f"{one.label} {100 * one.probability:.0f} %" for one in names)
        table.add_row(escape(Path(sound).name), escape(words))
    Console().print(table)
    if json_file is not None:
        content = {
            "model": name,
            "sounds": {sound: [one._asdict() for one in names] for sound, names in found.items()},
        }
        document = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomic(json_file, document.encode(errors="backslashreplace"))
        except OSError as error:
            raise InputError(f"--json {json_file} cannot be written ({error.strerror or error})") from None
        note(f"written to {json_file}")
