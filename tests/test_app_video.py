"""The page's Video tab in a real browser."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.samples import sample_videos
from tests.browser import Server, Visit, chromium, serving
from tests.video_files import encode_video, moving_square, tone

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# where the README's images of the page go, if this environment variable names a folder
SCREENSHOTS = os.environ.get("AVGRAD_SCREENSHOTS")
WAIT = 180_000  # milliseconds


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    import soundfile

    microphone = tmp_path_factory.mktemp("microphone") / "silence.wav"
    soundfile.write(microphone, np.zeros(16_000), 16_000)
    with chromium(microphone) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server
        left = list(server.temporary.rglob("avgrad-*"))
        assert not left, "a visit left temporary files behind"


def open_tab(browser: Browser, server: Server) -> Visit:
    visit = Visit(browser, server.url)
    visit.segment("Video").click()
    visit.page.get_by_label("Also look for").wait_for()  # the other tab has a control of the same name
    return visit


def located(visit: Visit) -> None:
    visit.page.locator('[data-testid="stVideo"]').wait_for(timeout=WAIT)
    visit.rest()


def at(visit: Visit) -> float:
    """The time of the moment that is shown large."""
    words = visit.page.locator(".st-key-moment_0").get_by_text("own sound, at").inner_text()
    return float(re.search(r"at ([\d.]+) s", words)[1])  # type: ignore[index]


def test_a_sample_is_located_played_clicked_and_downloaded(browser: Browser, server: Server) -> None:
    sample = sample_videos()[0]
    with np.load(sample.truth) as truth:
        labels, sounding = truth["labels"], truth["sounding"]
    assert "train" in [kind.name for kind in CLASSES]
    with open_tab(browser, server) as visit:
        located(visit)
        page = visit.page
        # the moment of the highest score is shown, and something sounds in it
        time = at(visit)
        sources = np.flatnonzero(sounding[round(time * 8)][:-1]) + 1
        assert len(sources) == 1
        image = visit.pixels(page.locator(".st-key-moment_0 img")).astype(int)
        hot = image[..., 0] - image[..., 2]
        row, column = np.unravel_index(hot.argmax(), hot.shape)
        mask = labels[round(time * 8)] == sources[0]
        rows, columns = np.nonzero(mask)
        scale = mask.shape[0] / image.shape[0]
        assert np.hypot(rows - row * scale, columns - column * scale).min() < 0.1 * mask.shape[0]
        # the player plays
        player = page.locator('[data-testid="stVideo"]')
        player.evaluate("video => { video.muted = true; return video.play(); }")
        page.wait_for_function("document.querySelector('[data-testid=stVideo]').currentTime > 0.5")
        facts = player.evaluate("v => [v.duration, v.videoWidth, v.videoHeight, v.webkitAudioDecodedByteCount]")
        assert facts[0] == pytest.approx(12, abs=0.2) and facts[1:3] == [320, 320] and facts[3] > 0
        player.evaluate("video => video.pause()")
        # the chart is as wide as the player, and a click on it shows that moment
        chart = page.locator('[data-testid="stVegaLiteChart"] svg.marks').bounding_box()
        screen = player.bounding_box()
        assert chart is not None and screen is not None
        assert abs(chart["x"] - screen["x"]) < 8 and abs(chart["width"] - screen["width"]) < 16
        page.mouse.click(chart["x"] + chart["width"] * 10 / 12, chart["y"] + chart["height"] / 2)
        page.wait_for_function(
            "before => !document.querySelector('.st-key-moment_0').innerText.includes(before)", arg=f"{time:.2f} s"
        )
        visit.rest()
        assert at(visit) == pytest.approx(10, abs=0.6)
        # the slider does, too
        before = at(visit)
        page.get_by_role("slider").first.press("ArrowRight")
        page.wait_for_function(
            "before => !document.querySelector('.st-key-moment_0').innerText.includes(before)", arg=f"{before:.2f} s"
        )
        visit.rest()
        assert at(visit) == before + 0.25
        name, content = visit.download("Heatmap video")
        assert name == "Clock, train, rain_heatmap.mp4" and content[4:8] == b"ftyp"
        name, content = visit.download("Table (JSON)")
        assert len(json.loads(content)["moments"]) == 48
        if SCREENSHOTS:
            page.screenshot(path=Path(SCREENSHOTS, "app_video.png"))


@pytest.mark.slow
def test_uploads_and_words(browser: Browser, server: Server) -> None:
    sound = tone(2)
    with open_tab(browser, server) as visit:
        located(visit)
        page = visit.page
        visit.segment("Upload").click()
        upload = page.get_by_test_id("stFileUploader").filter(has_text="Upload a video").locator("input[type=file]")
        upload.set_input_files(
            {"name": "hers <b>.mp4", "mimeType": "video/mp4", "buffer": encode_video(moving_square(20), sounds=[sound])}
        )
        page.get_by_text("knows only drawings").wait_for(timeout=WAIT)
        located(visit)
        page.get_by_label("Also look for").fill("a <i>bell</i>")
        page.get_by_label("Also look for").press("Enter")
        page.locator(".st-key-moment_1 img").wait_for(timeout=WAIT)
        assert page.locator(".legend li").all_inner_texts() == ["own sound", "a <i>bell</i>"]
        page.get_by_label("Also look for").fill("")
        page.get_by_label("Also look for").press("Enter")
        page.locator(".st-key-moment_1").wait_for(state="detached", timeout=WAIT)
        for name, content, words in (
            ("silent.gif", encode_video(moving_square(5), "gif"), "has no sound; write what to look for"),
            ("notes.mp4", b"no video", "notes.mp4 is in no known format"),
        ):
            upload.set_input_files({"name": name, "mimeType": "video/mp4", "buffer": content})
            page.get_by_text(words).wait_for(timeout=WAIT)


@pytest.mark.slow
def test_others_get_answers_meanwhile(browser: Browser, server: Server) -> None:
    long = encode_video(moving_square(4500, 96, 72), sounds=[tone(450)])
    with open_tab(browser, server) as first, Visit(browser, server.url) as second:
        first.segment("Upload").click()
        upload = (
            first.page.get_by_test_id("stFileUploader").filter(has_text="Upload a video").locator("input[type=file]")
        )
        upload.set_input_files({"name": "long.mp4", "mimeType": "video/mp4", "buffer": long})
        first.page.get_by_text("s left").wait_for(timeout=WAIT)
        second.and_see(lambda: second.write("a bell"))
        assert "a bell" in second.labels
        assert first.page.get_by_text("s left").is_visible()
        # leaving the tab ends the work
        first.segment("Image").click()
        first.heatmap.wait_for(timeout=WAIT)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("avgrad-")]
