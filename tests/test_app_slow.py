"""The page under load, and the paths that take longer; see `test_app_browser.py`."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from avgrad.engine.methods import list_methods
from avgrad.scenes.samples import samples
from tests.browser import Server, Visit, chromium, expect, serving, wav

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

SESSIONS = 8
MINUTE = 60.0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    microphone = tmp_path_factory.mktemp("microphone") / "noise.wav"
    microphone.write_bytes(wav(np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)))
    with chromium(microphone) as browser:
        yield browser


@pytest.fixture
def server(browser: Browser, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


def act(visit: Visit, turn: int) -> None:
    """One of the actions of visitors, without waiting for its effect."""
    scene = samples()[turn % len(samples())]
    if turn % 20 == 4:
        visit.upload_sound(f"{turn}.wav", wav(np.random.default_rng(turn).uniform(-0.5, 0.5, 32_000)))
    elif turn % 5 == 0:
        visit.button(scene.title).click()
    elif turn % 5 == 1:
        visit.write(f"{scene.objects[-1].text}\nan object number {turn}")
    elif turn % 5 == 2:
        visit.tab("Samples")
        visit.button(scene.objects[1].object_class).click()
    else:
        slider = visit.page.get_by_role("slider", name="Opacity" if turn % 5 == 3 else "Layer")
        slider.press("ArrowLeft" if turn % 2 else "ArrowRight")


def crowd(browser: Browser, server: Server, seconds: float) -> list[tuple[float, int]]:
    """Visitors who are all active all the time; returns the server's memory over time, in seconds and bytes."""
    memory = []
    with ExitStack() as stack:
        visits = [stack.enter_context(Visit(browser, server.url)) for _ in range(SESSIONS)]
        start, turn = time.monotonic(), 0
        while (now := time.monotonic() - start) < seconds:
            for number, visit in enumerate(visits):
                act(visit, turn + number)
            for visit in visits:
                visit.rest()
            memory.append((now, server.memory))
            turn += 1
        print(f"{SESSIONS} visitors did {turn * SESSIONS} actions in {seconds:.0f} s")
        for visit in visits:
            expect(visit.heatmap).to_be_visible()
            expect(visit.page.get_by_test_id("stException")).to_have_count(0)
    return memory


def test_eight_sessions_for_two_minutes(browser: Browser, server: Server) -> None:
    memory = crowd(browser, server, 2 * MINUTE)
    first = median(size for when, size in memory if MINUTE - 20 < when <= MINUTE)
    last = median(size for when, size in memory if when > 2 * MINUTE - 20)
    print(f"resident memory: {first / 2**20:.0f} MiB after a minute, {last / 2**20:.0f} MiB after two")
    assert last < 1.05 * first


def test_every_method(browser: Browser, server: Server) -> None:
    with Visit(browser, server.url) as visit:
        visit.segment("Methods").click()
        for method in [
            name for name in list_methods() if name not in ("legrad", "grad_eclip", "gradcam", "raw_attention")
        ]:
            visit.button(method.replace("_", " ")).click()
            visit.page.get_by_alt_text(f"Heatmap by the method {method}", exact=True).wait_for()
        expect(visit.page.get_by_alt_text("Heatmap by the method")).to_have_count(len(list_methods()))


def test_camera_and_speech(browser: Browser, server: Server) -> None:
    with Visit(browser, server.url) as visit:
        visit.segment("Camera").click()
        visit.page.wait_for_function("(document.querySelector('video') || {}).readyState >= 3")
        visit.page.get_by_role("button", name="Take photo").click()
        expect(visit.page.get_by_text("knows only drawings like the samples")).to_be_visible()
        visit.record("Speak", "Say what to look for", 2000)
        visit.page.get_by_alt_text("Heatmap of my words").wait_for()
        visit.rest()
        visit.segment("Save").click()
        name, content = visit.download("Your photo")
        assert name == "photo.jpg"
        with Image.open(io.BytesIO(content)) as photo:
            assert min(photo.size) > 100
        name, _ = visit.download("Your words (WAV)")
        assert name == "my_words.wav"


def test_models(browser: Browser, server: Server) -> None:
    """A model that is not on the server is said to be missing, with the command that downloads it."""
    with Visit(browser, server.url) as visit:
        visit.page.get_by_test_id("stExpandSidebarButton").click()
        visit.page.get_by_text("imagebind_huge", exact=True).click()
        expect(visit.page.get_by_text("avgrad download imagebind_huge")).to_be_visible()
        visit.page.get_by_text("CLIP of open_clip").click()
        choice = visit.page.get_by_role("combobox", name="Architecture/weights")
        for name, words in [
            ("../../etc/passwd", "A name such as"),
            ("ViT-B-16/nothing", "open_clip has no weights 'nothing' for ViT-B-16"),
        ]:
            choice.fill(name)
            choice.press("Enter")
            visit.page.get_by_role("button", name="Load", exact=True).click()
            expect(visit.page.get_by_role("alert").filter(has_text=words)).to_be_visible()
        visit.rest()
        visit.and_see(visit.button("bell").click)
        assert visit.labels == ["the sound of the train", "the sound of the bell"]
