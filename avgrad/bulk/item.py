"""One image of a collection: where its bytes are, and what to look for in it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from avgrad.errors import MediaError


@dataclass(frozen=True, slots=True)
class Item:
    """One image: a file, or a range of bytes in one (a member of a tar file, a value in an Arrow file).

    Attributes:
        id: what the collection calls it.
        path: the absolute path of the file.
        offset, length: the range of bytes; None for the whole file.
        prompts: what to look for in this image, besides the prompts of all images: pairs of a modality ("audio",
            "text", "speech" or "image") and a text or the absolute path of a file.
    """

    id: str
    path: str
    offset: int | None = None
    length: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()

    def open(self) -> str | bytes:
        """The path of the image's own file, or the bytes of the range: what `avgrad.media.load_image` takes.

        Raises:
            MediaError: the range cannot be read.
        """
        if self.offset is None or self.length is None:
            return self.path
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.length)
        except OSError as error:
            raise MediaError(f"{self.id} cannot be read ({error.strerror or error})") from None
        if len(content) < self.length:
            raise MediaError(f"{self.id} is cut short: {os.path.basename(self.path)} has changed")
        return content


def printable(name: str) -> str:
    """A file's name in UTF-8: what cannot be decoded becomes U+FFFD."""
    return os.fsencode(name).decode(errors="replace")
