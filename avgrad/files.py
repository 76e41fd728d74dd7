"""Writing files: each is either whole or not there. What a run was begun with, and whether it is the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any


def write_atomic(path: str | os.PathLike[str], content: bytes | Callable[[IO[bytes]], Any]) -> Path:
    """Writes a file under another name in the same folder, then renames it: a reader never sees a part of it.

    Args:
        path: of the file; one that exists is replaced.
        content: the bytes, or what writes them, called with the open binary file.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written. Nothing is left behind, and a file that was there stays as it was.
    """
    path = Path(path)
    # the name alone may already be as long as a file system allows, so it is not made a part of the temporary one
    part = path.with_name(f".{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        with part.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())  # so that it is whole after a power cut, too
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """In words, the first entry in which two manifests differ; empty if there is none."""
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = difference(before, after, f"{prefix}{key} ")
            if inner:
                return inner
        elif before != after:
            return f"{prefix}{key} {json.dumps(before)}, not {json.dumps(after)}"
    return ""
