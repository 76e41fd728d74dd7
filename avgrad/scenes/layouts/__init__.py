"""Synthetic twins: data sets of synthetic scenes in the on-disk layouts of the field's benchmarks.

A layout is one file in this folder with a function under `@layout("NAME")`; the names are those of `python -m eval`.
"""

from __future__ import annotations

import pkgutil
import shutil
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from avgrad.errors import InputError
from avgrad.scenes.series import Series

Writer = Callable[[Path, Series], None]

_WRITERS: dict[str, Writer] = {}


class DatasetError(InputError):
    """A data set cannot be written with these arguments."""


def layout(name: str) -> Callable[[Writer], Writer]:
    """Registers a function that writes the scenes of a series into an empty folder."""

    def register(write: Writer) -> Writer:
        _WRITERS[name] = write
        return write

    return register


def list_layouts() -> list[str]:
    """The names of all layouts."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return sorted(_WRITERS)


def write_dataset(
    out: str | Path, layout: str = "ade20k-sound", n: int = 100, seed: int = 0, size: int = 256, progress: bool = True
) -> Path:
    """Writes a data set of synthetic scenes.

    Every class is prompted equally often, in random order. Scene i depends on `seed`, `size` and i alone: a longer data
    set starts with the shorter one.

    Args:
        out: folder to create; it is written under a temporary name and renamed at the end.
        layout: one of `list_layouts()`.
        n: number of scenes, 1 or more.
        seed: 0 or more.
        size: height and width of the images in pixels, 64 or more; ignored where the benchmark has its own.
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder exists, or an argument is out of range.
    """
    target = Path(out)
    if layout not in list_layouts():
        raise DatasetError(f"there is no layout {layout!r}; expected one of {', '.join(list_layouts())}")
    if n < 1 or seed < 0 or size < 64:
        raise DatasetError(f"a data set needs n >= 1, seed >= 0 and size >= 64; got n={n}, seed={seed}, size={size}")
    if target.exists():
        raise DatasetError(f"{target} exists already; a data set is written to a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        partial.chmod(0o755)
        _WRITERS[layout](partial, Series(n, seed, size, progress))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target
