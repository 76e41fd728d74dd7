"""The avgrad command: the library's public face, one line at a time. Each file here adds commands."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path

import typer

from avgrad.errors import InputError, out_of_memory

app = typer.Typer(
    help="Where in this image is what I hear, say or write?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command; a user's mistake ends in one sentence and exit status 2."""
    logging.disable(logging.ERROR)  # what other libraries log on the way; the sentence below says what matters
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except InputError as error:
        note(str(error))
        sys.exit(2)
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        note("not enough memory; try a smaller --size, fewer prompts, --dtype bfloat16 or a smaller model")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def note(text: str) -> None:
    """A remark beside the output."""
    print(f"avgrad: {text}", file=sys.stderr)


def check_folder(folder: Path, argument: str) -> None:
    """Refuses a folder to write to that is a file.

    Raises:
        InputError: the folder is a file, or the system does not accept its name.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{argument} {folder} is a file; a folder is expected")
    except OSError as error:  # a name that is too long, for example
        raise InputError(f"{argument} {folder} cannot be used ({error.strerror or error})") from None


for _name in (
    "localize",
    "describe",
    "find",
    "models",
    "calibrate",
    "scenes",
    "pages",
):  # in the order of `avgrad --help`
    import_module(f"avgrad.cli.{_name}")
