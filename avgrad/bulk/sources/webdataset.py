"""WebDataset shards: tar files whose members are images."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator

from avgrad.bulk.item import Item, printable
from avgrad.bulk.sources.registry import IMAGES, Source, source
from avgrad.errors import InputError


@source
class WebDataset(Source):
    """An uncompressed tar file. Members with an image's name are its images, in the order of the file.

    Only the headers are read here, and nothing is ever unpacked: each image is a range of bytes. A folder of shards is
    given as a glob by the shell, or as several sources.
    """

    form = "an uncompressed .tar file"

    def takes(self, path: str) -> bool:
        return path.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")) and os.path.isfile(
            path
        )

    def items(self, path: str) -> Iterator[Item]:
        if not path.lower().endswith(".tar"):
            raise InputError(f"source {path!r} is compressed; {self.form} is accepted (images are compressed anyway)")
        absolute, name = os.path.abspath(path), printable(path)
        try:
            with tarfile.open(path, "r:") as file:
                for member in file:
                    if member.isreg() and not member.sparse and member.name.lower().endswith(IMAGES):
                        yield Item(f"{name}/{printable(member.name)}", absolute, member.offset_data, member.size)
                    file.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers
        except tarfile.TarError as error:
            raise InputError(f"source {path!r} is damaged or no tar file ({error})") from None
