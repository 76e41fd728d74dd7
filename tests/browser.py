"""The page as users see it: `avgrad app` in a process of its own, and a headless Chromium."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, LocatorAssertions, Page, Playwright

ROOT = Path(__file__).parents[1]
INSTALL_SECONDS = 240
WAIT = 60_000  # milliseconds; much longer than anything takes, for busy machines
NO_BROWSER = (
    "the tests of the page need Chromium: pip install playwright && python -m playwright install --with-deps chromium"
)

# Python reports every file that it opens; what is opened for writing goes into the log.
_WATCH = """
import os, sys
_log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def _watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and (arguments[2] or 0) & _writing:
        os.write(_log, os.fsencode(arguments[0]) + b"\\n")
sys.addaudithook(_watch)
"""


class Server:
    """`avgrad app` in a folder of its own, with a home, a cache and a temporary folder of its own.

    Attributes:
        url: of the page.
        process: of the server.
        temporary: the only folder that it may write to once it serves.
    """

    def __init__(self, folder: Path) -> None:
        self._written, self._log = folder / "written.txt", folder / "log.txt"
        self.temporary = folder / "temporary"
        for name in ("home", "watch", "temporary", "work"):
            (folder / name).mkdir()
        (folder / "watch" / "sitecustomize.py").write_text(_WATCH.format(log=str(self._written)))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder / "watch"), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(folder / "home"),
            "AVGRAD_CACHE": str(folder / "cache"),
            "TMPDIR": str(self.temporary),
        }
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.url = f"http://localhost:{port}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "avgrad.cli", "app", "--port", str(port)],
                cwd=folder / "work",
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Waits until the page is served."""
        start = time.monotonic()
        while time.monotonic() < start + WAIT / 1000:
            assert self.process.poll() is None, self.log
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=5):
                    print(f"avgrad app serves after {time.monotonic() - start:.1f} s")
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise AssertionError(f"the server did not start: {self.log}")

    @property
    def log(self) -> str:
        """What the server printed."""
        return self._log.read_text(errors="replace")

    @property
    def written(self) -> list[Path]:
        """Every file that the server opened for writing."""
        return [Path(line) for line in self._written.read_text(errors="surrogateescape").splitlines()]

    @property
    def memory(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    @property
    def cpu(self) -> float:
        """Processor time so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Stops the server as Ctrl-C does; it must have logged no error or warning."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0, self.log
        assert not re.search(r"traceback|error|warning|exception", self.log, re.IGNORECASE), self.log


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A running server, stopped at the end whatever happens."""
    server = Server(folder)
    try:
        server.wait()
        yield server
        server.stop()
    finally:
        server.process.kill()
        server.process.wait()


@contextmanager
def chromium(microphone: Path) -> Iterator[Browser]:
    """A headless Chromium whose microphone plays a WAV file in a loop; skips the test if there is none."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        pytest.skip(NO_BROWSER)
    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        browser = _launch(playwright, microphone)
        if browser is None:
            pytest.skip(NO_BROWSER)
        yield browser
        browser.close()


def _launch(playwright: Playwright, microphone: Path) -> Browser | None:
    """The first that starts of this machine's browsers and playwright's own, which is downloaded if it is missing."""
    from playwright.sync_api import Error

    arguments = [
        "--no-sandbox",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
    ]
    names = ("chromium", "google-chrome", "chromium-browser")
    paths: list[str | None] = [path for path in map(shutil.which, names) if path]
    for path in (*paths, None):  # None: playwright's own
        try:
            return playwright.chromium.launch(executable_path=path, args=arguments)
        except Error:
            continue
    if not _install():
        return None
    try:
        return playwright.chromium.launch(args=arguments)
    except Error:  # it lacks libraries of the system
        return None


@cache
def _install() -> bool:
    """Downloads playwright's Chromium, quietly and at most once; whether that worked."""
    try:
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        return subprocess.run(command, capture_output=True, timeout=INSTALL_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def expect(locator: Locator) -> LocatorAssertions:
    """Playwright's assertions about a locator, which wait until they hold."""
    from playwright.sync_api import expect

    return expect(locator)


class Visit:
    """One visitor's page; an error in the browser's console fails the test when it is left.

    Attributes:
        page: for what is not offered here.
    """

    def __init__(self, browser: Browser, url: str, size: tuple[int, int] = (1280, 900), scheme: str = "light") -> None:
        self._context: BrowserContext = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        self._errors: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda message: self._log(message.type, message.text))
        self.page.on("pageerror", lambda error: self._log("error", str(error)))
        self.page.goto(url)
        self.heatmap.wait_for()

    def _log(self, level: str, text: str) -> None:
        if level == "error":
            self._errors.append(text)

    def leave(self) -> None:
        """Closes the page."""
        self._context.close()
        assert not self._errors, self._errors

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, type_: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.leave()
        else:
            self._context.close()

    # ------------------------------------------------------------------ what the page shows

    @property
    def heatmap(self) -> Locator:
        """The first heatmap: of the only prompt, or of all together."""
        return self.page.locator(".st-key-heatmap img")

    @property
    def seconds(self) -> float:
        """The time that the server gave for its last answer."""
        shown = self.page.locator(".st-key-heatmap").get_by_text("answered in").inner_text()
        return float(re.search(r"in ([\d.]+) s", shown)[1])  # type: ignore[index]

    @property
    def labels(self) -> list[str]:
        """Of the prompts that were answered."""
        return self.page.locator(".asked b").all_inner_texts()

    def pixels(self, image: Locator | None = None) -> np.ndarray:
        """The pixels `[H, W, 3]` of an image that is shown; of the heatmap if none is named."""
        source = (image or self.heatmap).evaluate("image => image.src")
        response = self.page.request.get(source)
        assert response.ok
        with Image.open(io.BytesIO(response.body())) as opened:
            return np.asarray(opened.convert("RGB"))

    # ------------------------------------------------------------------ what a visitor does

    def and_see(self, act: Callable[[], object]) -> float:
        """Does something that changes the heatmap and waits for it; returns the seconds that the server took."""
        before = self.heatmap.get_attribute("src")
        act()
        self.page.wait_for_function(
            "before => { const image = document.querySelector('.st-key-heatmap img');"
            "return image && image.complete && image.getAttribute('src') !== before; }",
            arg=before,
        )
        self.rest()
        return self.seconds

    def rest(self) -> None:
        """Waits until the server has nothing more to send."""
        self.page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()

    def segment(self, name: str) -> Locator:
        """An option of which one is chosen, by its label."""
        return self.page.get_by_role("radio", name=name, exact=True)

    def button(self, name: str) -> Locator:
        """A button, or an option of which any number is chosen, by its label."""
        return self.page.get_by_role("button", name=name, exact=True)

    def tab(self, name: str) -> None:
        """Opens a tab."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def write(self, texts: str) -> None:
        """Localizes texts, one per line."""
        self.tab("Write")
        self.page.get_by_label("Write what to look for").fill(texts)
        self.button("Look").click()

    def record(self, tab: str, label: str, milliseconds: int) -> None:
        """Records from the microphone."""
        self.tab(tab)
        recorder = self.page.get_by_test_id("stAudioInput").filter(has_text=label)
        recorder.get_by_role("button", name="Record", exact=True).click()
        self.page.wait_for_timeout(milliseconds)
        recorder.get_by_role("button", name="Stop recording").click()

    def upload_image(self, name: str, content: bytes | Path, mime: str = "image/png") -> None:
        """Uploads an image."""
        self.segment("Upload").click()
        self._upload("Upload an image", name, content, mime)

    def upload_sound(self, name: str, content: bytes | Path, mime: str = "audio/wav") -> None:
        """Uploads a sound."""
        self.tab("Upload")
        self._upload("Upload sounds", name, content, mime)

    def _upload(self, label: str, name: str, content: bytes | Path, mime: str) -> None:
        uploader = self.page.get_by_test_id("stFileUploader").filter(has_text=label)
        file = content if isinstance(content, Path) else {"name": name, "mimeType": mime, "buffer": content}
        uploader.locator("input[type=file]").set_input_files(file)

    def download(self, label: str) -> tuple[str, bytes]:
        """The name and the bytes of what a button saves."""
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=label).click()
        return download.value.suggested_filename, download.value.path().read_bytes()


def wav(waveform: np.ndarray, rate: int = 16_000) -> bytes:
    """A WAV file's bytes."""
    stream = io.BytesIO()
    soundfile.write(stream, waveform, rate, format="WAV")
    return stream.getvalue()
