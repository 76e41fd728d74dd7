"""A file or a byte string that came from outside, and what its first bytes say it is."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, BinaryIO

import numpy as np
import torch

from avgrad.errors import MediaError

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Signature:
    """What a file is by its first bytes, whatever its name says.

    Attributes:
        description: a noun phrase for messages, such as "a JPEG image".
        kind: "image", "sound" (which may be the track of a video) or "other".
        demuxer: the one FFmpeg demuxer that may open it; FFmpeg is never left to guess, since some of its
            formats (playlists) make it fetch other files and addresses. None where there is no need.
        libsndfile: whether libsndfile is asked first.
    """

    description: str
    kind: str
    demuxer: str | None = None
    libsndfile: bool = False


# Of an MP3 without a length in its first frame libsndfile reads as far as it guesses, and no further.
MP3 = Signature("an MP3 sound", "sound", "mp3")
AAC = Signature("an AAC sound", "sound", "aac")
MP4 = Signature("an MP4 or QuickTime file", "sound", "mp4")

_PREFIXES: tuple[tuple[int, bytes, Signature], ...] = (
    (0, b"\xff\xd8\xff", Signature("a JPEG image", "image")),
    (0, b"\x89PNG", Signature("a PNG image", "image")),
    (0, b"GIF8", Signature("a GIF image", "image", "gif")),
    (8, b"WEBP", Signature("a WebP image", "image")),
    (0, b"II*\0", Signature("a TIFF image", "image")),
    (0, b"MM\0*", Signature("a TIFF image", "image")),
    (4, b"ftypavif", Signature("an AVIF image", "image")),
    (4, b"ftypheic", Signature("a HEIC image", "image")),
    (4, b"ftypmif1", Signature("a HEIF image", "image")),
    (8, b"WAVE", Signature("a WAV sound", "sound", "wav", libsndfile=True)),
    (8, b"AVI ", Signature("an AVI video", "sound", "avi")),
    (0, b"fLaC", Signature("a FLAC sound", "sound", "flac", libsndfile=True)),
    # libsndfile's seeks in Ogg Vorbis may land some hundred samples beside the place.
    (0, b"OggS", Signature("an Ogg file", "sound", "ogg")),
    (0, b"FORM", Signature("an AIFF sound", "sound", "aiff", libsndfile=True)),
    (0, b"caff", Signature("a CAF sound", "sound", "caf", libsndfile=True)),
    (0, b".snd", Signature("an AU sound", "sound", "au", libsndfile=True)),
    (0, b"\x1aE\xdf\xa3", Signature("a WebM or Matroska file", "sound", "matroska")),
    (4, b"ftyp", MP4),
    (4, b"moov", MP4),
    (4, b"mdat", MP4),
    (4, b"wide", MP4),
    (4, b"free", MP4),
    (0, b"%PDF", Signature("a PDF document", "other")),
    (0, b"PK\x03\x04", Signature("a ZIP archive", "other")),
)


def _recognize(head: bytes) -> Signature | None:
    for offset, prefix, signature in _PREFIXES:
        if head.startswith(prefix, offset):
            return signature
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return Signature("a BMP image", "image")
    if head[:200].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return Signature("a web page", "other")
    frame = head.lstrip(b"\0")[:4]
    if len(frame) == 4 and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0:
        if frame[1] & 0xF6 == 0xF0:
            return AAC
        if frame[1] & 0x06 and frame[2] & 0xF0 != 0xF0 and frame[2] & 0x0C != 0x0C:
            return MP3
    return None


@dataclass(frozen=True)
class Source:
    """A readable, non-empty file or byte string.

    Attributes:
        name: how messages call it.
        content: the path, or the bytes themselves.
        size: its length in bytes.
        head: its first bytes, an ID3 tag (which may stand before any kind of sound) left out.
        signature: what it is; None if its first bytes are those of no format known here.
    """

    name: str
    content: str | bytes
    size: int
    head: bytes
    signature: Signature | None

    def open(self) -> BinaryIO:
        """A new binary stream at the first byte."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else open(self.content, "rb")


def open_source(source: object, name: str | None, accepted: str) -> Source:
    """Look at a path or a byte string that came from outside.

    Args:
        source: a path (str or os.PathLike of str) or the bytes of a file.
        name: how messages call it; the file's name, or "the given bytes", if None.
        accepted: what would be accepted, for the messages.

    Raises:
        MediaError: it is neither, does not exist, is no regular file, cannot be read or is empty.
    """
    content: str | bytes
    try:
        if isinstance(source, bytes):
            name, content, size = name or "the given bytes", source, len(source)
        elif isinstance(source, (str, os.PathLike)):
            content = os.fsdecode(source)
            name = name or os.path.basename(content) or content or "the empty path"
            information = os.stat(content)
            size = information.st_size
            if stat.S_ISDIR(information.st_mode):
                raise MediaError(f"{name} is a directory; {accepted} is accepted.")
            if not stat.S_ISREG(information.st_mode):  # reading a pipe or a device might never end
                raise MediaError(f"{name} is not a regular file; {accepted} is accepted.")
        else:
            kind = type(source).__name__
            raise MediaError(f"{name or 'the input'} is of type {kind}; {accepted} is accepted.")
        if size == 0:
            raise MediaError(f"{name} is empty; {accepted} is accepted.")
        with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as stream:
            head = stream.read(HEAD_BYTES)
            tagged = head[:3] == b"ID3" and len(head) >= 10
            if tagged:
                length = 0
                for byte in head[6:10]:
                    length = length << 7 | byte & 0x7F
                stream.seek(10 + length)
                head = stream.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise MediaError(f"{name} does not exist; {accepted} is accepted.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{name} cannot be read ({reason}); {accepted} is accepted.") from error
    return Source(name, content, size, head, _recognize(head) or (MP3 if tagged else None))


def as_list(value: Any) -> list[Any]:
    """One source or several, as a list; None is none. A pair of a waveform and its sample rate is one sound.

    >>> as_list("dog.wav"), as_list(("dog.wav", "cat.wav")), as_list(([0.1, 0.2], 16_000))
    (['dog.wav'], ['dog.wav', 'cat.wav'], [([0.1, 0.2], 16000)])
    """
    if value is None:
        return []
    if isinstance(value, tuple) and len(value) == 2:
        waveform, sample_rate = value
        if isinstance(waveform, np.ndarray | torch.Tensor) or isinstance(sample_rate, Real):
            return [value]
    several = isinstance(value, Iterable) and not isinstance(
        value, str | bytes | bytearray | os.PathLike | np.ndarray | torch.Tensor | Mapping
    )
    return list(value) if several else [value]


def source_name(source: Any) -> str:
    """What a source is called: the name of its file, or nothing."""
    if not isinstance(source, str | os.PathLike):
        source = getattr(source, "filename", "")  # an image that Pillow opened
    name = os.path.basename(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else ""
    return os.fsencode(name).decode(errors="replace")  # names of files need not be UTF-8
