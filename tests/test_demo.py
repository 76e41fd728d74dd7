"""The demo as users run it, and the sample scenes that it shows."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from PIL import Image

from avgrad.demo import Demo, run
from avgrad.demo.page import page
from avgrad.drawing import log_mel_of_file, outline
from avgrad.scenes import CLASSES
from avgrad.scenes.samples import SAMPLES, SIZE, build, draw_sample, samples

ROOT = Path(__file__).parents[1]
OBJECTS = sum(len(sample.objects) for sample in samples())
LOADING = {"src", "srcset", "poster", "data", "background", "action", "xlink:href"}


class Parsed(HTMLParser):
    """A page's elements with their attributes, and its texts by the element that they are in."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.elements[-1][0] if self.elements else "", data))

    def all(self, tag: str, style: str = "") -> list[dict[str, str]]:
        return [found for name, found in self.elements if name == tag and style in found.get("class", "")]


class Run(NamedTuple):
    folder: Path
    output: str
    page: Parsed
    document: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "avgrad.cli", "demo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AVGRAD_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(f"avgrad demo took {time.perf_counter() - start:.1f} s")
    assert done.returncode == 0, done.stderr
    document = (folder / "avgrad_demo" / "index.html").read_text(encoding="utf-8")
    return Run(folder / "avgrad_demo", done.stdout, Parsed(document), document)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run(tmp_path_factory.mktemp("ran") / "new" / "folder", progress=False)


def test_files(demo: Run) -> None:
    names = {"index.html", "gallery.png", *(f"scene_{number}.png" for number in range(1, 9))}
    assert {path.name for path in demo.folder.iterdir()} == names
    for name in names - {"index.html"}:
        with Image.open(demo.folder / name) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width >= 1300
    with Image.open(demo.folder / "gallery.png") as image:
        assert image.width == 1600
    assert (demo.folder / "gallery.png").stat().st_size < 2**20


def test_output_says_where_and_what_next(demo: Run) -> None:
    assert str(Path("avgrad_demo", "index.html")) in demo.output
    assert "avgrad localize PHOTO --text" in demo.output
    assert "avgrad download imagebind_huge" in demo.output


def test_page_is_self_contained(demo: Run) -> None:
    for tag, attributes in demo.page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in attributes.keys() & LOADING:
            assert attributes[name].startswith("data:")
    assert "@import" not in demo.document
    assert "url(" not in demo.document
    assert "http://" not in demo.document
    assert "https://" not in demo.document


def test_page_shows_every_prompt(demo: Run) -> None:
    scenes = len(samples())
    answers = demo.page.all("figure", "answer")
    assert len(answers) == 3 * OBJECTS + scenes
    # the prompts for absent objects cycle through the three modalities
    assert [len(demo.page.all("figure", style)) for style in ("sound", "speech", "text")] == [
        OBJECTS + 3, OBJECTS + 3, OBJECTS + 2
    ]  # fmt: skip
    assert len(demo.page.all("div", "absent")) == scenes
    players = demo.page.all("audio")
    assert len(players) == 2 * OBJECTS + 6
    for player in players:
        sound, rate = soundfile.read(io.BytesIO(_decoded(player["src"])))
        assert rate == 16_000
        assert 0.5 < len(sound) / rate <= 4
    for tag in demo.page.all("img"):
        assert len(tag["alt"]) > 10
        with Image.open(io.BytesIO(_decoded(tag["src"]))) as image:
            assert image.size == (int(tag["width"]), int(tag["height"]))


def _decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition(";base64,")[2], validate=True)


def test_objects_are_found(demo: Run) -> None:
    """The hottest pixel is on the object for more than 8 of 10 prompts."""
    good, bad = (len(demo.page.all("span", style)) for style in ("good", "bad"))
    print(f"on the object: {good} of {good + bad}")
    assert good + bad == 3 * OBJECTS
    assert good > 0.8 * (good + bad)


def test_figures_are_those_of_the_masks(ran: Demo) -> None:
    threshold_maps = [scene.result.heatmaps.numpy() >= 0.5 for scene in ran.scenes]
    for scene, maps in zip(ran.scenes, threshold_maps, strict=True):
        for answer in (*scene.answers, scene.absent):
            assert scene.result.prompts[answer.index].modality == answer.modality
            assert answer.score == float(scene.result.scores[answer.index])
        for answer in scene.answers:
            truth = answer.obj.mask()
            expected = np.sum(maps[answer.index] & truth) / np.sum(maps[answer.index] | truth)
            assert answer.iou == pytest.approx(expected, abs=1e-12)
        assert scene.absent.obj.object_class not in {obj.object_class for obj in scene.sample.objects}
        assert scene.absent.iou is None


def test_page_escapes(ran: Demo) -> None:
    scene = ran.scenes[0]
    hostile = "<script>alert('&')</script>\" onload=\"x"
    objects = tuple(obj._replace(object_class=hostile, phrase=hostile, text=hostile) for obj in scene.sample.objects)
    answers = tuple(replace(answer, obj=objects[scene.sample.objects.index(answer.obj)]) for answer in scene.answers)
    sample = scene.sample._replace(title=hostile, objects=objects)
    absent = replace(scene.absent, obj=scene.absent.obj._replace(object_class=hostile))
    hostile_scene = replace(scene, sample=sample, answers=answers, absent=absent)
    altered = Parsed(page([hostile_scene, *ran.scenes[1:]], 1.0))
    assert not altered.all("script")
    assert not any("onload" in attributes for _, attributes in altered.elements)
    assert sum(hostile in text for _, text in altered.texts) >= 10


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "avgrad.cli", "demo", "taken"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "taken is a file; a folder is expected" in done.stderr
    assert "Traceback" not in done.stderr


def test_outline() -> None:
    mask = np.zeros((7, 7), dtype=bool)
    mask[2:5, 2:5] = True
    expected = np.zeros((7, 7), dtype=bool)
    expected[1:6, 1:6] = True
    expected[3, 3] = False
    np.testing.assert_array_equal(outline(mask), expected)
    assert not outline(np.zeros((5, 5), dtype=bool)).any()


@pytest.mark.parametrize("frequency", [300.0, 1_000.0, 4_000.0])
def test_log_mel_image(tmp_path: Path, frequency: float) -> None:
    """A tone is a bright line at its height: bin centres are evenly spaced on Slaney's mel scale."""
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * frequency * np.arange(32_000) / 16_000), 16_000)
    image = np.asarray(log_mel_of_file(tmp_path / "tone.wav", (100, 64)).convert("L"), dtype=float)
    brightest = 63 - image[:, 50].argmax()
    mel = frequency * 3 / 200 if frequency < 1_000 else 15 + 27 * np.log(frequency / 1_000) / np.log(6.4)
    top = 15 + 27 * np.log(8) / np.log(6.4)
    assert brightest == pytest.approx(mel / top * 65 - 1, abs=1)


def test_samples_are_small_and_show_every_class() -> None:
    sizes = [path.stat().st_size for path in SAMPLES.iterdir()]
    assert sum(sizes) < 2**20
    assert len(samples()) == 8
    assert {obj.object_class for sample in samples() for obj in sample.objects} == {
        object_class.name for object_class in CLASSES
    }
    assert all(2 <= len(sample.objects) <= 4 for sample in samples())


def test_samples_are_what_the_generator_draws() -> None:
    for index, sample in enumerate(samples()):
        scene = draw_sample(index)
        assert [obj.object_class for obj in sample.objects] == [
            CLASSES[object_class].name for object_class in scene.classes
        ]
        for obj, mask in zip(sample.objects, scene.masks, strict=True):
            np.testing.assert_array_equal(obj.mask(), mask)
        with Image.open(sample.image) as image:
            assert image.size == (SIZE, SIZE)
            # JPEG smooths the grain of single pixels; blocks of 8 keep their colour
            difference = np.asarray(image, dtype=float) - scene.image
            assert np.abs(difference.reshape(SIZE // 8, 8, SIZE // 8, 8, 3).mean((1, 3))).mean() < 2


def test_samples_sound() -> None:
    for sample in samples():
        for obj in sample.objects:
            sound, speech = soundfile.info(obj.sound), soundfile.info(obj.speech)
            assert (sound.samplerate, sound.channels, sound.subtype) == (16_000, 1, "OPUS")
            assert (speech.samplerate, speech.channels, speech.subtype) == (16_000, 1, "OPUS")
            assert 3 <= sound.duration <= 4
            assert obj.object_class in obj.phrase


def test_samples_can_be_made_again(tmp_path: Path) -> None:
    build(tmp_path / "samples")
    shipped = {path.name: path for path in SAMPLES.iterdir()}
    made = {path.name: path for path in (tmp_path / "samples").iterdir()}
    assert made.keys() == shipped.keys()
    for name in made:
        # encoders of other versions may write other bytes, but what is lossless says the same
        if name.endswith(".json"):
            assert made[name].read_bytes() == shipped[name].read_bytes()
        if name.endswith(".png"):
            with Image.open(made[name]) as again, Image.open(shipped[name]) as first:
                np.testing.assert_array_equal(np.asarray(again), np.asarray(first))
