"""Image files, folders of them, and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from avgrad.bulk.item import Item, printable
from avgrad.bulk.sources.registry import IMAGES, Source, source


@source
class Files(Source):
    """An image file, all images below a folder (by the ends of their names), or what a glob matches.

    Folders are walked in alphabetical order; links to folders are not followed. Names that begin with a dot are passed
    over. `**` in a glob stands for any number of folders.
    """

    form = "an image file, a folder or a glob"
    last = True

    def takes(self, path: str) -> bool:
        return os.path.exists(path) or glob.has_magic(path)

    def items(self, path: str) -> Iterator[Item]:
        for file in self._files(path):
            yield Item(printable(file), os.path.abspath(file))

    def _files(self, path: str) -> Iterator[str]:
        if os.path.isdir(path):
            yield from _walk(path)
        elif os.path.exists(path):
            yield path
        else:
            for match in sorted(glob.glob(path, recursive=True)):
                if os.path.isfile(match):
                    yield match


def _walk(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif entry.name.lower().endswith(IMAGES) and entry.is_file():
            yield entry.path
