"""The page in a real browser, served by `avgrad app`."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from matplotlib import colormaps
from PIL import Image

from avgrad.app.image import FIRST
from avgrad.app.session import MAX_QUESTIONS
from avgrad.models.registry import load
from avgrad.scenes.samples import SIZE, SampleObject, samples
from tests.browser import ROOT, Server, Visit, chromium, expect, serving, wav

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# where the README's images of the page go, if this environment variable names a folder
SCREENSHOTS = os.environ.get("AVGRAD_SCREENSHOTS")

DEPTH = len(load("mini").vision.blocks)
HOSTILE = "<img src=x onerror=document.title='hers'> **bold** [link](javascript:alert(1)) :red[x]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    sound, rate = soundfile.read(samples()[FIRST].objects[1].sound)
    microphone = tmp_path_factory.mktemp("microphone") / "bell.wav"
    soundfile.write(microphone, sound, rate)
    with chromium(microphone) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        Visit(browser, server.url).leave()
        before = len(server.written)
        yield server
        for path in server.written[before:]:
            assert server.temporary in (path, *path.parents) or path == Path(os.devnull), "a visit left a file behind"
        # torch 2.6 writes a module of its own there, once
        own = "_remote_module_non_scriptable.py"
        left = [path for path in server.temporary.rglob("*") if path.is_file() and path.name != own]
        assert not left, "a visit left a temporary file behind"


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    with Visit(browser, server.url) as visit:
        yield visit


def report(what: str, server: Server, visit: Visit, act: Callable[[], object]) -> None:
    """Does something that changes the heatmap, and prints what it took (on a busy machine look at processor time)."""
    before = server.cpu
    seconds = visit.and_see(act)
    print(f"{what}: {seconds:.2f} s of server time ({server.cpu - before:.2f} s of processor time)")


def hottest(overlay: np.ndarray, obj: SampleObject) -> bool:
    """Whether the pixel nearest to the hot end of the colour map is on the object."""
    hot = np.array(colormaps["turbo"](1.0)[:3]) * 255
    row, column = np.unravel_index(np.abs(overlay - hot).sum(-1).argmin(), overlay.shape[:2])
    mask = obj.mask()
    return bool(mask[row * mask.shape[0] // overlay.shape[0], column * mask.shape[1] // overlay.shape[1]])


def test_first_screen_shows_an_answer(visit: Visit, server: Server) -> None:
    obj = samples()[FIRST].objects[0]
    assert visit.labels == [f"the sound of the {obj.object_class}"]
    expect(visit.page.get_by_text("in the image", exact=False).first).to_be_visible()
    expect(visit.heatmap).to_have_attribute(
        "alt", re.compile(f"Heatmap of the sound of the {obj.object_class}, hottest at")
    )
    player = visit.page.get_by_test_id("stAudio")
    assert (
        player.evaluate("audio => new Promise(done => { audio.oncanplay = () => done(audio.duration); audio.load() })")
        > 3
    )
    sound = visit.page.get_by_alt_text("log-mel spectrogram of the sound of the train; clip windows: 0.0 to 2.0 s")
    assert visit.pixels(sound).shape == (222, 640, 3)
    # a slider by the keyboard; at full opacity the hottest place has the colour map's own last colour
    slider = visit.page.get_by_role("slider", name="Opacity")
    report("slider", server, visit, lambda: slider.press("End"))
    visit.and_see(lambda: visit.page.get_by_text("Outline of the mask").click())
    assert hottest(visit.pixels(), obj)


def test_nothing_and_too_much(visit: Visit) -> None:
    object_class = samples()[FIRST].objects[0].object_class
    visit.button(object_class).click()
    expect(visit.page.get_by_text("Nothing to look for yet")).to_be_visible()
    visit.write("\n".join(f"object {number}" for number in range(MAX_QUESTIONS + 1)))
    expect(visit.page.get_by_text(f"At most {MAX_QUESTIONS} prompts")).to_be_visible()
    expect(visit.page.get_by_alt_text("Heatmap of")).to_have_count(MAX_QUESTIONS)


def test_prompts_together_and_apart(visit: Visit, server: Server) -> None:
    visit.and_see(visit.button("Emergency call").click)
    assert visit.labels == ["the sound of the car"]
    report("new sound on the same image", server, visit, visit.button("siren").click)
    report("new texts on the same image", server, visit, lambda: visit.write("a telephone\n\n  the  frog "))
    assert visit.labels == ["the sound of the car", "the sound of the siren", "a telephone", "the frog"]
    expect(visit.page.get_by_role("list", name="Colours of the prompts").get_by_role("listitem")).to_have_count(4)
    expect(visit.page.get_by_alt_text("Heatmap of")).to_have_count(4)
    expect(visit.page.get_by_alt_text("All heatmaps together, in colours")).to_have_count(1)
    expect(visit.page.get_by_text("probably not in the image").first).to_be_visible()
    one_colour = visit.pixels()
    visit.and_see(lambda: visit.page.get_by_role("slider", name="Layer").press("ArrowRight"))
    assert not np.array_equal(visit.pixels(), one_colour)
    visit.segment("Layers").click()
    expect(visit.page.get_by_alt_text("alone")).to_have_count(DEPTH)
    visit.segment("Methods").click()
    expect(visit.page.get_by_alt_text("Heatmap by the method")).to_have_count(4)


def test_downloads(visit: Visit, tmp_path: Path) -> None:
    visit.and_see(lambda: visit.write("the clock"))
    visit.and_see(lambda: visit.page.get_by_role("slider", name="Mask from").press("ArrowRight"))
    visit.and_see(lambda: visit.page.get_by_role("slider", name="Layer").press("End"))
    visit.segment("Save").click()
    files = {}
    for label in ("Overlay (PNG)", "Mask (PNG)", "Heatmaps (NPZ)", "Scores (JSON)", "Python code"):
        name, files[label] = visit.download(label)
        (tmp_path / name).write_bytes(files[label])
    arrays = np.load(io.BytesIO(files["Heatmaps (NPZ)"]))
    assert arrays["heatmaps"].shape == (2, SIZE, SIZE)
    assert list(arrays["labels"]) == ["the sound of the train", "the clock"]
    with Image.open(io.BytesIO(files["Mask (PNG)"])) as mask:
        values, heat = np.asarray(mask), arrays["heatmaps"][0]  # of half precision
        assert set(np.unique(values)) == {0, 255}
        assert (values[heat > 0.551] == 255).all()
        assert (values[heat < 0.549] == 0).all()
    document = json.loads(files["Scores (JSON)"])
    assert [prompt["label"] for prompt in document["prompts"]] == ["the sound of the train", "the clock"]
    assert document["layers"] == [DEPTH - 1]
    assert document["threshold"] == 0.55
    subprocess.run(
        [sys.executable, "localize.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    again = np.load(tmp_path / "out" / "heatmaps.npz")
    np.testing.assert_allclose(again["heatmaps"], arrays["heatmaps"], atol=1e-3)
    np.testing.assert_allclose(again["scores"], arrays["scores"], atol=1e-5)
    with Image.open(io.BytesIO(files["Overlay (PNG)"])) as shown, Image.open(tmp_path / "overlay.png") as made:
        assert shown.format == "PNG"
        difference = np.abs(np.asarray(shown, dtype=int) - np.asarray(made, dtype=int))
        assert difference.max() <= 2


def test_uploads_good_and_bad(visit: Visit, tmp_path: Path) -> None:
    def refused(words: str) -> None:
        expect(visit.page.get_by_role("alert").filter(has_text=words).first).to_be_visible()

    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 640_000)  # more than a server keeps in memory while it comes in
    good, stream, large = wav(noise), io.BytesIO(), tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(26 * 2**20)
    Image.new("RGB", (1500, 300), "#208040").save(stream, "PNG")
    visit.upload_sound("noise.wav", good)
    expect(visit.page.get_by_alt_text("Heatmap of noise.wav")).to_have_count(1)
    for name, content, words in [
        ("cut.wav", good[: len(good) // 2], "cut.wav is cut short"),
        ("empty.wav", b"", "empty.wav is empty"),
        ("silent.wav", wav(np.zeros(32_000)), "silent.wav is silent"),
        ("text.wav", b"hello", "text.wav is in no known format"),
    ]:
        visit.upload_sound(name, content)
        refused(words)
    visit.upload_image("green.png", stream.getvalue())
    expect(visit.page.get_by_text("knows only drawings like the samples")).to_be_visible()
    visit.rest()
    assert visit.pixels().shape == (128, 640, 3)
    assert visit.labels == ["the sound of the train", "noise.wav"]
    for name, content, words in [
        ("cut.png", stream.getvalue()[:90], "cut.png is"),
        ("empty.png", b"", "empty.png is empty"),
        ("sound.png", good, "sound.png is a WAV sound"),
        ("notes.txt", b"hello", "not allowed"),
        ("large.png", large, "must be 25"),
    ]:
        visit.upload_image(name, content, "text/plain" if name.endswith("txt") else "image/png")
        expect(visit.page.get_by_text(words).first).to_be_visible()
    # the session goes on, with the last good image
    visit.and_see(lambda: visit.write("a dog"))
    assert visit.pixels().shape == (128, 640, 3)


def test_microphone(visit: Visit) -> None:
    """The microphone plays the sound of the first scene's second object."""
    visit.record("Record", "Record a sound", 2500)
    visit.page.get_by_alt_text("Heatmap of my recording").wait_for()
    visit.rest()
    assert visit.labels == ["the sound of the train", "my recording"]
    visit.segment("Save").click()
    name, content = visit.download("Your sound (WAV)")
    sound, rate = soundfile.read(io.BytesIO(content))
    assert name == "my_recording.wav"
    assert 1.5 < len(sound) / rate < 6
    assert np.abs(sound).max() > 0.01


def test_text_is_never_html(visit: Visit) -> None:
    title = visit.page.title()
    visit.and_see(lambda: visit.write(HOSTILE))
    name = HOSTILE.replace("/", "")
    visit.upload_sound(f"{name}.wav", wav(np.random.default_rng(1).uniform(-0.5, 0.5, 16_000)))
    visit.page.get_by_alt_text("Waveform and log-mel spectrogram of <img").wait_for()
    visit.upload_image(f"{name}.png", b"no image")
    expect(visit.page.get_by_role("alert").filter(has_text=f"{name}.png is in no known format")).to_be_visible()
    visit.segment("Save").click()
    expect(visit.page.get_by_text("localizer.localize(")).to_be_visible()
    visit.rest()
    assert visit.labels == ["the sound of the train", f"{name}.wav", HOSTILE]
    assert visit.page.locator("img[src=x]").count() == 0
    assert visit.page.locator("a[href^=javascript]").count() == 0
    assert visit.page.title() == title


def test_sessions_see_their_own_images(browser: Browser, server: Server) -> None:
    colours = ((200, 30, 30), (30, 30, 200))
    visits = [Visit(browser, server.url) for _ in colours]
    for visit, colour in zip(visits, colours, strict=True):
        stream = io.BytesIO()
        Image.new("RGB", (320, 240), colour).save(stream, "PNG")
        visit.upload_image("mine.png", stream.getvalue())
    for visit, colour in zip(visits, colours, strict=True):
        expect(visit.page.get_by_text("knows only drawings like the samples")).to_be_visible()
        visit.rest()
        visit.and_see(lambda visit=visit: visit.page.get_by_text("Outline of the mask").click())
        visit.and_see(lambda visit=visit: visit.page.get_by_role("slider", name="Opacity").press("Home"))
        np.testing.assert_allclose(visit.pixels().reshape(-1, 3).mean(0), colour, atol=3)
        visit.leave()


# What a screen reader says of each control, and of each image, must not be nothing.
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, [role=slider], [role=tab], img')]
    .filter(element => element.offsetParent !== null)
    .filter(element => !(element.ariaLabel || element.alt || element.innerText || element.title
        || element.getAttribute('aria-labelledby') || (element.labels || []).length))
    .map(element => element.outerHTML.slice(0, 300))"""


@pytest.mark.parametrize(("size", "scheme"), [((390, 844), "dark"), ((1280, 900), "light")])
def test_screens(browser: Browser, server: Server, size: tuple[int, int], scheme: str) -> None:
    """On a phone and on a desk nothing sticks out, and everything has a name."""
    with Visit(browser, server.url, size, scheme) as visit:
        visit.and_see(visit.button("bell").click)
        assert visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= size[0]
        width = visit.heatmap.bounding_box()["width"]  # type: ignore[index]
        assert width > (0.85 if size[0] < 640 else 0.4) * size[0]
        assert visit.page.evaluate(NAMELESS) == []
        dark = visit.page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        assert (sum(int(part) for part in dark[4:-1].split(",")) < 200) == (scheme == "dark")
        if SCREENSHOTS:
            visit.page.evaluate("document.querySelector('[data-testid=stMain]').scrollTo(0, 0)")
            visit.page.mouse.move(0, 0)
            visit.page.wait_for_timeout(500)  # fonts and players fade in
            with Image.open(io.BytesIO(visit.page.screenshot())) as shot:
                few = shot.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT)
                few.save(Path(SCREENSHOTS) / f"app_{'phone' if size[0] < 640 else 'desk'}.png", optimize=True)
