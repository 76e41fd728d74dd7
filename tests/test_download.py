"""Downloads from a real server on this machine that breaks, lies and changes its mind."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import torch

from avgrad.errors import CheckpointError
from avgrad.models.download import LICENSE_NOTICE, download_imagebind
from avgrad.models.imagebind import ImageBind
from avgrad.models.towers import ImageBindConfig
from benchmarks.loading import save_random_checkpoint

CONFIG = ImageBindConfig(
    vision_embed_dim=32, vision_num_blocks=2, vision_num_heads=4,
    audio_embed_dim=24, audio_num_blocks=2, audio_num_heads=3,
    text_embed_dim=16, text_num_blocks=2, text_num_heads=2, text_vocab_size=64, out_embed_dim=20,
)  # fmt: skip
ROOT = Path(__file__).parents[1]


@dataclass
class Server:
    """What the server has and how it misbehaves, and the log of what it was asked for.

    Attributes:
        content: the file.
        etag: its ETag, or None to send none.
        modified: its Last-Modified time, or None to send none.
        ranges: whether it knows Range.
        condition: whether it knows If-Range.
        breaks: for each answer in turn, after how many bytes the connection breaks; -1 before any answer.
        reset: whether it breaks with a reset instead of an early end.
        statuses: for each answer in turn, an error status to give instead of the file.
        length: the Content-Length to claim; None for the true one.
        chunked: whether to send without a length, in HTTP/1.1 chunks.
        pause: seconds between pieces of a 16th of the file.
        asked: the Range header of each request, or None.
        sent: bytes of bodies sent in all.
    """

    content: bytes = b""
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    condition: bool = True
    breaks: list[int] = field(default_factory=list)
    reset: bool = False
    statuses: list[int] = field(default_factory=list)
    length: int | None = None
    chunked: bool = False
    pause: float = 0.0
    asked: list[str | None] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        asked = handler.headers["Range"]
        self.asked.append(asked)
        limit = self.breaks.pop(0) if self.breaks else None
        if limit == -1:
            return
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        start = 0
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if self.condition and handler.headers["If-Range"] not in (self.etag, self.modified):
                start = 0
        if start >= len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            total = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.modified:
            handler.send_header("Last-Modified", self.modified)
        body = self.content[start:]
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(len(body) if self.length is None else self.length))
        handler.end_headers()
        self.send(handler, body[:limit], whole=limit is None)

    def send(self, handler: http.server.BaseHTTPRequestHandler, body: bytes, whole: bool) -> None:
        step = max(len(self.content) // 16, 1)
        for first in range(0, len(body), step):
            piece = body[first : first + step]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.chunked else piece)
            self.sent += len(piece)
            time.sleep(self.pause)
        if self.chunked and whole:
            handler.wfile.write(b"0\r\n\r\n")
        if self.reset and not whole:
            handler.wfile.flush()
            time.sleep(0.2)  # a reset discards what the other side has not read yet
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    save_random_checkpoint(path, ImageBind(CONFIG).shapes)
    return path.read_bytes()


@pytest.fixture
def server(checkpoint: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server(checkpoint)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                state.answer(self)
            except (BrokenPipeError, ConnectionResetError):  # the client has gone
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{listener.server_address[1]}/imagebind_huge.pth"
        yield state
        listener.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "imagebind_huge.pth"


def download(server: Server, target: Path, attempts: int = 3) -> Path:
    return download_imagebind(server.url, target, config=CONFIG, attempts=attempts, pause=0.01)


def refusal(server: Server, target: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        download(server, target)
    message = str(caught.value)
    assert "\n" not in message
    assert not target.exists()
    return message


def names(target: Path) -> set[str]:
    return {path.name.removeprefix(target.name) for path in target.parent.iterdir()}


# ------------------------------------------------------------------ how it should go


def test_whole_file(server: Server, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download(server, target) == target
    assert target.read_bytes() == server.content
    assert names(target) == {""}
    assert LICENSE_NOTICE in capsys.readouterr().out
    assert "CC-BY-NC 4.0" in LICENSE_NOTICE


def test_cache_folder_is_the_default(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVGRAD_CACHE", str(tmp_path / "a" / "b"))
    assert download_imagebind(server.url, config=CONFIG) == tmp_path / "a" / "b" / "imagebind_huge.pth"


def test_second_time_downloads_nothing(server: Server, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download(server, target)
    capsys.readouterr()
    download(server, target)
    assert len(server.asked) == 1
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("validators", [('"one"', None), (None, "Wed, 21 Oct 2015 07:28:00 GMT")])
def test_broken_connections_are_resumed(
    reset: bool, validators: tuple[str | None, str | None], server: Server, target: Path
) -> None:
    server.etag, server.modified = validators
    server.reset = reset
    server.breaks = [-1, 1000, -1, 5000, 0, 70_000, 1]
    download(server, target)
    assert target.read_bytes() == server.content
    assert server.asked == [
        None,
        None,
        *(f"bytes={n}-" for n in (1000, 1000, 6000, 6000, 76000, 76001)),
    ]
    assert server.sent == len(server.content)  # no byte came twice


def test_next_run_goes_on(server: Server, target: Path) -> None:
    server.breaks = [100_000, -1, -1, -1]
    message = refusal(server, target)
    assert "100000 bytes of it are kept" in message and "`avgrad download imagebind_huge` again" in message
    assert names(target) == {".part", ".part.json"}
    download(server, target)
    assert server.asked[-1] == "bytes=100000-"
    assert target.read_bytes() == server.content and names(target) == {""}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_run_is_resumed(number: int, server: Server, target: Path) -> None:
    server.pause = 0.1
    code = (
        "import sys; from avgrad.models.download import *; from avgrad.models.towers import ImageBindConfig\n"
        f"download_imagebind({server.url!r}, {str(target)!r}, config=ImageBindConfig(**{asdict(CONFIG)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 60
    while server.sent < len(server.content) // 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) != 0
    assert not target.exists()
    assert names(target) - {".lock"} == {".part", ".part.json"}
    server.pause = 0.0
    download(server, target)
    assert target.read_bytes() == server.content
    assert names(target) == {""}
    assert re.fullmatch(r"bytes=\d+-", server.asked[-1] or "")


def test_without_range_it_starts_over(server: Server, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.ranges = False
    server.breaks = [50_000, 20_000]
    download(server, target)
    assert target.read_bytes() == server.content
    assert "cannot be sent in parts" in capsys.readouterr().out


def test_without_validator_it_starts_over(server: Server, target: Path) -> None:
    """Nothing would tell whether the rest belongs to the same file."""
    server.etag = None
    server.breaks = [50_000]
    download(server, target)
    assert server.asked == [None, None]
    assert target.read_bytes() == server.content


def test_weak_etag_is_no_validator(server: Server, target: Path) -> None:
    server.etag = 'W/"one"'
    server.breaks = [50_000]
    download(server, target)
    assert server.asked == [None, None]


@pytest.mark.parametrize("condition", [True, False])
def test_file_that_changes_between_attempts(condition: bool, server: Server, target: Path, tmp_path: Path) -> None:
    """Also where the server sends the new file's rest without looking at If-Range."""
    server.condition = condition
    server.breaks = [50_000, -1, -1, -1]
    refusal(server, target)
    save_random_checkpoint(tmp_path / "other.pth", ImageBind(CONFIG).shapes, seed=1)
    server.content, server.etag = (tmp_path / "other.pth").read_bytes(), '"two"'
    download(server, target)
    assert target.read_bytes() == server.content


def test_part_of_another_address_is_not_used(server: Server, target: Path) -> None:
    server.breaks = [50_000, -1, -1, -1]
    refusal(server, target)
    server.url += "?version=2"
    download(server, target)
    assert server.asked[-1] is None
    assert target.read_bytes() == server.content


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": 3}', '{"other": 3}'])
def test_damaged_note_beside_the_part(note: str, server: Server, target: Path) -> None:
    target.parent.mkdir()
    Path(f"{target}.part").write_bytes(b"x" * 1000)
    Path(f"{target}.part.json").write_text(note)
    download(server, target)
    assert target.read_bytes() == server.content


def test_part_that_is_longer_than_the_file(server: Server, target: Path) -> None:
    target.parent.mkdir()
    Path(f"{target}.part").write_bytes(server.content + b"more")
    state = {"url": server.url, "validator": server.etag, "size": len(server.content)}
    Path(f"{target}.part.json").write_text(json.dumps(state))
    download(server, target)
    assert target.read_bytes() == server.content


def test_part_that_is_complete_is_not_fetched_again(server: Server, target: Path) -> None:
    target.parent.mkdir()
    Path(f"{target}.part").write_bytes(server.content)
    state = {"url": server.url, "validator": server.etag, "size": len(server.content)}
    Path(f"{target}.part.json").write_text(json.dumps(state))
    download(server, target)
    assert server.asked == []
    assert target.read_bytes() == server.content


def test_without_a_length(server: Server, target: Path) -> None:
    server.chunked = True
    server.breaks = [50_000]
    download(server, target)
    assert target.read_bytes() == server.content


def test_damaged_file_is_replaced(server: Server, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target.parent.mkdir()
    target.write_bytes(server.content[:1000])
    download(server, target)
    assert target.read_bytes() == server.content
    assert "is truncated; it is downloaded anew" in capsys.readouterr().out


def test_busy_server_is_asked_again(server: Server, target: Path) -> None:
    server.statuses = [503, 429]
    download(server, target)
    assert target.read_bytes() == server.content


# ------------------------------------------------------------------ what goes wrong for good


@pytest.mark.parametrize("content", [b"<html>please log in</html>", b"\x89PNG\r\n\x1a\n" + bytes(5000)])
def test_wrong_file(content: bytes, server: Server, target: Path) -> None:
    server.content = content
    message = refusal(server, target)
    assert "is not the checkpoint and was removed" in message and "is not a checkpoint" in message
    assert names(target) == set()


def test_checkpoint_cut_on_the_server(server: Server, target: Path) -> None:
    server.content = server.content[:-1000]
    assert "is truncated" in refusal(server, target)
    assert names(target) == set()


def test_another_models_checkpoint(server: Server, target: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    server.content = (tmp_path / "other.pth").read_bytes()
    assert "the file lacks modality_preprocessors.vision.cls_token" in refusal(server, target)


def test_small_model_is_not_imagebind_huge(server: Server, target: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has shape \[1, 1, 32\]"):
        download_imagebind(server.url, target)
    assert not target.exists()


@pytest.mark.parametrize("status", [403, 404, 410])
def test_file_that_is_not_there(status: int, server: Server, target: Path) -> None:
    server.statuses = [status] * 9
    assert f"the server answered '{status} " in refusal(server, target)
    assert len(server.asked) == 1
    assert names(target) == set()


def test_server_that_never_answers(server: Server, target: Path) -> None:
    server.breaks = [-1] * 9
    assert "could not be downloaded" in refusal(server, target)
    assert len(server.asked) == 3
    assert names(target) == set()


def test_server_that_always_breaks_at_the_same_place(server: Server, target: Path) -> None:
    server.ranges = False
    server.breaks = [5000] * 99
    assert "5000 of" in refusal(server, target)
    assert len(server.asked) == 3


def test_no_server(server: Server, target: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        server.url = f"http://127.0.0.1:{taken.getsockname()[1]}/x.pth"
        assert "check the network connection" in refusal(server, target)


def test_unknown_host(server: Server, target: Path) -> None:
    server.url = "http://no-such-host.invalid/x.pth"
    assert "could not be downloaded" in refusal(server, target)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "x.pth", ""])
def test_other_schemes(url: str, server: Server, target: Path) -> None:
    server.url = url
    assert "is not an http or https address" in refusal(server, target)


def test_disk_too_small(server: Server, target: Path) -> None:
    server.length = 10**18
    message = refusal(server, target)
    assert "needs 1000000000.0 GB" in message and "AVGRAD_CACHE" in message


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of files")
def test_disk_full(server: Server, target: Path) -> None:
    code = (
        "import resource, signal\n"
        "from avgrad.models.download import *; from avgrad.models.towers import ImageBindConfig\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        f"config = ImageBindConfig(**{asdict(CONFIG)!r})\n"
        f"try: download_imagebind({server.url!r}, {str(target)!r}, config=config)\n"
        "except CheckpointError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "imagebind_huge.pth cannot be written (" in done.stdout
    assert os.path.getsize(f"{target}.part") == 30_000
    download(server, target)
    assert target.read_bytes() == server.content


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        download(server, tmp_path / "cache" / "imagebind_huge.pth")


def test_destination_is_a_directory(server: Server, target: Path) -> None:
    target.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="is a directory"):
        download(server, target)


def test_two_at_once(server: Server, target: Path) -> None:
    server.pause = 0.05
    thread = threading.Thread(target=download, args=(server, target))
    thread.start()
    while not server.sent:
        time.sleep(0.01)
    assert "another process is downloading" in refusal(server, target)
    thread.join()
    assert target.read_bytes() == server.content
    assert len(server.asked) == 1 and names(target) == {""}
