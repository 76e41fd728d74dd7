"""Downloads the published checkpoint: resumed where it broke off, and checked before it gets its name."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from tqdm import tqdm

from avgrad.errors import CheckpointError
from avgrad.models.checkpoints import check_layout, checkpoint_path, open_checkpoint
from avgrad.models.imagebind import ImageBind
from avgrad.models.towers import ImageBindConfig

IMAGEBIND_URL = "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth"
LICENSE_NOTICE = "The ImageBind weights are licensed CC-BY-NC 4.0: their authors allow no commercial use."
AGAIN = "run `avgrad download imagebind_huge` again to go on from there"
TIMEOUT = 30.0  # seconds without a byte until a connection counts as broken
CHUNK = 1 << 20
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that another attempt may mend


class _BrokenConnectionError(Exception):
    """An attempt that failed in a way that another one may mend."""


@dataclass(frozen=True)
class _RemoteFile:
    """What the server said of the file that is being downloaded; saved beside what arrived of it.

    Attributes:
        url: where it is.
        validator: its ETag or else its Last-Modified time, which tells whether it has changed since, or None.
        size: in bytes, or None if the server did not say.
    """

    url: str
    validator: str | None
    size: int | None


def download_imagebind(
    url: str = IMAGEBIND_URL,
    destination: str | os.PathLike[str] | None = None,
    *,
    config: ImageBindConfig | None = None,
    attempts: int = 5,
    pause: float = 1.0,
) -> Path:
    """Downloads an ImageBind checkpoint, unless it is there already, and says how its weights are licensed.

    What arrives is kept as `DESTINATION.part` until all of it is there; a later call goes on from what an
    earlier one left, unless the server's file has changed. It gets its name once its size, keys and shapes
    are as expected. A file that has the name already but fails that check is replaced.

    Args:
        url: of the checkpoint, http or https.
        destination: the file to write; None for imagebind_huge's place in the cache folder.
        config: the model whose keys and shapes are expected; None for imagebind_huge.
        attempts: how many attempts in a row may bring nothing new before the download is given up.
        pause: seconds before the second of them; doubled before each further one.

    Returns:
        The path of the checkpoint.

    Raises:
        CheckpointError: the server cannot be reached or does not have the file, the file cannot be written,
            the disk is too small, what arrived is no such checkpoint, or another process is downloading it.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise CheckpointError(f"{url} is not an http or https address")
    path = checkpoint_path("imagebind_huge") if destination is None else Path(destination)
    shapes = ImageBind(config).shapes
    tqdm.write(LICENSE_NOTICE)
    lock = Path(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            try:
                if not _is_there(path, shapes):
                    _fetch(url, path, attempts, pause)
                    _check(path, shapes, url)
                    os.replace(_part_path(path), path)
                    _discard(path)
                    tqdm.write(f"{path} is complete: size, keys and shapes are as expected")
            finally:
                with suppress(OSError):  # Windows lets nobody remove a file that is open
                    lock.unlink()
    except Timeout:
        raise CheckpointError(f"another process is downloading {path} just now; wait for it to finish") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error.strerror or error}); {AGAIN}") from error
    return path


def _part_path(path: Path) -> Path:
    return Path(f"{path}.part")


def _state_path(path: Path) -> Path:
    return Path(f"{path}.part.json")


def _discard(path: Path) -> None:
    _part_path(path).unlink(missing_ok=True)
    _state_path(path).unlink(missing_ok=True)


def _reason(error: CheckpointError) -> str:
    return str(error).partition("; ")[0]  # without the advice to download


def _is_there(path: Path, shapes: Mapping[str, Sequence[int]]) -> bool:
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; a file name is expected")
    if not path.exists():
        return False
    try:
        check_layout(open_checkpoint(path), shapes, path.name)
    except CheckpointError as error:
        tqdm.write(f"{_reason(error)}; it is downloaded anew")
        return False
    tqdm.write(f"{path} is there already, with the keys and shapes expected; nothing is downloaded")
    return True


def _check(path: Path, shapes: Mapping[str, Sequence[int]], url: str) -> None:
    try:
        check_layout(open_checkpoint(_part_path(path)), shapes, "the file")
    except CheckpointError as error:
        _discard(path)
        reason = _reason(error)
        raise CheckpointError(f"what {url} sent is not the checkpoint and was removed ({reason})") from error


# ------------------------------------------------------------------ HTTP


def _fetch(url: str, path: Path, attempts: int, pause: float) -> None:
    """All bytes of the file, in `PATH.part`, over as many connections as it takes."""
    part = _part_path(path)
    most, failures = 0, 0
    while True:
        try:
            return _attempt(url, path)
        except _BrokenConnectionError as error:
            arrived = part.stat().st_size if part.exists() else 0
            failures = 1 if arrived > most else failures + 1
            most = max(most, arrived)
            if failures >= attempts:
                mending = f"{arrived} bytes of it are kept, {AGAIN}" if arrived else "check the network connection"
                raise CheckpointError(f"{url} could not be downloaded ({error}); {mending}") from error
            wait = pause * 2 ** (failures - 1)
            tqdm.write(f"the connection broke ({error}); the next attempt is in {wait:g} s")
            time.sleep(wait)


def _attempt(url: str, path: Path) -> None:
    """One connection: the whole file, or the rest of what an earlier connection left of the same file."""
    part = _part_path(path)
    remote = _read_state(path)
    arrived = part.stat().st_size if remote and remote.url == url and part.exists() else 0
    headers = {"User-Agent": "avgrad", "Accept-Encoding": "identity"}
    if remote and arrived and arrived == remote.size:
        return
    if remote and arrived and remote.validator:
        headers |= {"Range": f"bytes={arrived}-", "If-Range": remote.validator}
    with _open(Request(url, headers=headers), path) as response:
        resumed = response.status == 206
        if resumed:
            start, size = _content_range(response)
            if (
                remote is None
                or (start, size) != (arrived, remote.size)
                or _validator(response) not in (None, remote.validator)
            ):
                _discard(path)
                raise _BrokenConnectionError("the server sent another part than the one asked for")
        else:
            if arrived:
                tqdm.write("the server's file has changed or cannot be sent in parts; the download starts anew")
            _discard(path)
            length = response.headers["Content-Length"] or ""
            arrived, size = 0, int(length) if length.isdecimal() else None
            _state_path(path).write_text(json.dumps(asdict(_RemoteFile(url, _validator(response), size))))
        if size is not None:
            _check_space(path.parent, size - arrived)
        arrived += _receive(response, part, size, arrived)
    if size is not None and arrived != size:
        raise _BrokenConnectionError(f"{arrived} of {size} bytes arrived")


def _open(request: Request, path: Path) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urlopen(request, timeout=TIMEOUT)
        return response
    except HTTPError as error:
        with error:
            if error.code == 416:  # what is here is no beginning of what is there
                _discard(path)
            elif error.code not in TRANSIENT:
                answer = f"{error.code} {error.reason}".strip()
                raise CheckpointError(f"the server answered {answer!r} to {request.full_url}") from error
            raise _BrokenConnectionError(f"the server answered {error.code}") from error
    except URLError as error:
        raise _BrokenConnectionError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenConnectionError(str(error) or type(error).__name__) from error


def _receive(response: http.client.HTTPResponse, part: Path, size: int | None, arrived: int) -> int:
    """Appends what the connection brings to the file; the number of bytes."""
    received = 0
    bar = tqdm(total=size, initial=arrived, unit="B", unit_scale=True, desc=part.stem, disable=None)
    with open(part, "ab") as file, bar:
        while True:
            try:
                chunk = response.read1(CHUNK)  # what has arrived, so that nothing is lost when it breaks
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenConnectionError(str(error) or type(error).__name__) from error
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
            received += len(chunk)
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave a file that is complete in name only
    return received


def _validator(response: http.client.HTTPResponse) -> str | None:
    tag = response.headers["ETag"]
    if tag and not tag.startswith("W/"):  # a weak one does not promise equal bytes
        return str(tag)
    return response.headers["Last-Modified"]


def _content_range(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
    return (int(found[1]), int(found[2])) if found else (None, None)


def _read_state(path: Path) -> _RemoteFile | None:
    try:
        return _RemoteFile(**json.loads(_state_path(path).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"the download needs {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB of free space; "
            "set AVGRAD_CACHE to a folder on a larger disk"
        )
