"""The result: heatmaps, boxes, peaks, overlays, and what it keeps on disk."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import avgrad
from avgrad import InputError, Localization, Prompt
from avgrad.engine.attribute import min_max, upsample
from avgrad.localization import OVERLAYS, SIDE, file_words


def make(width: int = 60, height: int = 40, grid: tuple[int, int] = (4, 6), labels: Any = ("one", "two")) -> Any:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Localization(
        image=Image.fromarray(pixels.numpy()),
        prompts=[Prompt(torch.randn(5, generator=generator), label, "text") for label in labels],
        scores=torch.rand(len(labels), generator=generator),
        maps=torch.rand(len(labels), *grid, generator=generator),
        layer_maps=torch.rand(len(labels), 3, *grid, generator=generator),
        layers=[1, 2, 3],
        model="some model",
        method="legrad",
        options={"pooling": "mean", "size": None, "backward_dtype": torch.bfloat16},
        name="street.jpg",
        versions={"avgrad": "1", "torch": "2"},
        seconds={"image": 0.25},
    )


def from_heat(heat: Any) -> Localization:
    """A result whose heatmap is given."""
    given = torch.as_tensor(heat, dtype=torch.float32)
    size = (given.shape[1], given.shape[0])
    return replace(make(*size, labels=("one",)), maps=given[None])


# ------------------------------------------------------------------ heatmaps


@pytest.mark.parametrize("first", [False, True])
def test_heatmaps_are_upsampled_from_maps(first: bool) -> None:
    result = replace(make(), normalized_first=first)
    maps = result.maps[None]
    expected = upsample(min_max(maps), (40, 60)) if first else min_max(upsample(maps, (40, 60)))
    one = result.heatmap(1)  # before those of all are read, and after
    assert torch.equal(result.heatmaps, expected[0])
    assert torch.equal(one, result.heatmaps[1])
    assert torch.equal(result.heatmap(1), one)
    assert result.heatmaps is result.heatmaps


@pytest.mark.parametrize("size", [(60, 40), (61, 7), (5, 3), (1, 9), (2, 2), (16, 16), (333, 97)])
@pytest.mark.parametrize("grid", [(4, 6), (1, 1), (7, 3), (16, 16)])
def test_peaks_are_the_hottest_pixels(size: tuple[int, int], grid: tuple[int, int]) -> None:
    result = make(*size, grid=grid, labels=[str(number) for number in range(20)])
    for index, heat in enumerate(upsample(result.maps[None], (size[1], size[0]))[0]):
        column, row = result.peak(index)
        assert heat[row, column] >= heat.max() - 1e-6
    constant = replace(result, maps=torch.ones_like(result.maps))
    assert constant.peak(-1) == (0, 0)
    with pytest.raises(IndexError):
        result.peak(20)


def test_masks() -> None:
    result = make()
    assert torch.equal(result.mask(0.7), result.heatmaps >= 0.7)
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"threshold=.* in \[0, 1\]"):
            result.mask(threshold)
        with pytest.raises(InputError, match="threshold="):
            result.boxes(threshold)


def test_boxes_are_those_of_connected_parts_the_largest_first() -> None:
    heat = np.zeros((20, 30))
    heat[2:4, 3:6] = 0.6  # 6 pixels
    heat[10:15, 20:28] = 1.0  # 40 pixels
    heat[15, 28] = 1.0  # touches the last by a corner only
    result = from_heat(heat)
    assert result.boxes(0.5) == [[(20, 10, 28, 15), (3, 2, 6, 4), (28, 15, 29, 16)]]
    assert result.boxes(0.7) == [[(20, 10, 28, 15), (28, 15, 29, 16)]]
    assert from_heat(np.zeros((20, 30))).boxes() == [[]]
    assert [len(boxes) for boxes in make().boxes(0.0)] == [1, 1]
    x0, y0, x1, y1 = result.boxes(0.5)[0][0]
    assert result.image.crop((x0, y0, x1, y1)).size == (8, 5)


# ------------------------------------------------------------------ looking at it


def test_overlays_are_hot_where_the_heatmap_is() -> None:
    result = from_heat(np.linspace(0, 1, 600).reshape(20, 30))
    overlay = np.asarray(result.overlay(0), dtype=float)
    original = np.asarray(result.image, dtype=float)
    heat = result.heatmaps[0].numpy()
    assert np.abs(overlay - original)[heat < 1e-4].max() <= 2
    hottest = np.asarray(result.overlay(0, opacity=1), dtype=float)[-1, -1]
    np.testing.assert_allclose(hottest, [122, 4, 3], atol=1)  # the last color of turbo
    assert np.array_equal(np.asarray(result.overlay(0, opacity=0)), np.asarray(result.image))


def test_overlays_are_blended_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    result = make()
    whole = np.asarray(result.overlay(1))
    monkeypatch.setattr("avgrad.overlay._BAND", 100)
    assert np.array_equal(np.asarray(result.overlay(1)), whole)


def test_mistakes_of_overlays() -> None:
    for colormap in ("no such map", "", None):
        with pytest.raises(InputError, match="there is no colormap"):
            make().overlay(0, colormap=colormap)
    for opacity in (-0.1, 2):
        with pytest.raises(InputError, match="opacity="):
            make().overlay(0, opacity=opacity)


def test_it_is_shown_in_short() -> None:
    text = repr(make(labels=["a label that is far too long " * 9, "two", "three", "four", "five"]))
    assert len(text) < 250
    assert text.startswith("Localization(street.jpg 60x40, some model, legrad: 'a label")
    assert text.endswith("2 more)")
    assert "'two' (text) 0." in text


def test_a_notebook_shows_an_image() -> None:
    image = Image.open(io.BytesIO(make(3000, 2000)._repr_png_()))
    assert image.format == "PNG"
    assert max(image.size) < 2000


# ------------------------------------------------------------------ on disk


def test_it_is_kept_on_disk(tmp_path: Path) -> None:
    result = make(labels=["a bell / <b>", "a dog"])
    files = result.save(tmp_path / "new" / "out", note="x")
    names = {"overlay_0_a_bell_b.jpg", "overlay_1_a_dog.jpg", "image.jpg", "heatmaps.npz", "result.json"}
    assert {file.name for file in files} == {file.name for file in (tmp_path / "new" / "out").iterdir()} == names
    assert files[-1].name == "result.json"
    assert Image.open(files[0]).size == result.image.size
    arrays = np.load(tmp_path / "new" / "out" / "heatmaps.npz")
    assert "heatmaps" not in arrays
    assert arrays["labels"].tolist() == ["a bell / <b>", "a dog"]
    document = json.loads((tmp_path / "new" / "out" / "result.json").read_text())
    assert document["note"] == "x"
    assert document["prompts"][1] == {
        "label": "a dog", "modality": "text", "score": round(float(result.scores[1]), 6), "presence": None,
        "peak": list(result.peak(1)),
    }  # fmt: skip
    assert document["options"]["backward_dtype"] == "torch.bfloat16"
    result.save(tmp_path / "large", heatmaps=True)
    arrays = np.load(tmp_path / "large" / "heatmaps.npz")
    np.testing.assert_allclose(arrays["heatmaps"], result.heatmaps, atol=1e-3)


@pytest.mark.parametrize("first", [False, True])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, first: bool) -> None:
    result = replace(make(), normalized_first=first)
    result.save(tmp_path)
    again = Localization.load(tmp_path)
    assert again.image.size == result.image.size
    for name in ("maps", "layer_maps", "scores", "heatmaps"):
        assert torch.equal(getattr(again, name), getattr(result, name))
    for name in ("layers", "model", "method", "normalized_first", "name", "device", "dtype", "versions", "seconds"):
        assert getattr(again, name) == getattr(result, name)
    assert repr(again) == repr(result)
    assert again.boxes() == result.boxes()
    for one, other in zip(again.prompts, result.prompts, strict=True):
        assert (one.label, one.modality) == (other.label, other.modality)
        assert torch.equal(one.embedding, other.embedding)


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no result of Localization.save \(No such file"):
        Localization.load(tmp_path)
    make().save(tmp_path)
    (tmp_path / "image.jpg").unlink()
    with pytest.raises(InputError, match=r"image\.jpg does not exist"):
        Localization.load(tmp_path)
    make().save(tmp_path)
    for name, content in (("result.json", b"{}"), ("result.json", b"[1"), ("heatmaps.npz", b"PK"), ("image.jpg", b"x")):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"damaged|no known format|holds no result"):
            Localization.load(tmp_path)
        (tmp_path / name).write_bytes(before)


def test_hundreds_of_prompts(tmp_path: Path) -> None:
    result = make(labels=[f"text {number}" for number in range(500)])
    result.save(tmp_path / "few")
    assert len(list((tmp_path / "few").glob("overlay_*.jpg"))) == OVERLAYS
    assert len(json.loads((tmp_path / "few" / "result.json").read_text())["prompts"]) == 500
    assert "heatmaps" not in result.__dict__  # heatmaps of all prompts were not made
    result.save(tmp_path / "all", overlays=None)
    assert len(list((tmp_path / "all").glob("overlay_*.jpg"))) == 500
    result.save(tmp_path / "none", overlays=0)
    assert not list((tmp_path / "none").glob("overlay_*.jpg"))


def test_large_images_are_saved_in_little_memory(tmp_path: Path) -> None:
    """Of twelve megapixels and five prompts; the maps of all at once would be 240 MB."""
    result = make(4000, 3000, grid=(16, 21), labels=["one", "two", "three", "four", "five"])
    tracemalloc.start()
    try:
        files = result.save(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "heatmaps" not in result.__dict__
    assert peak < 100e6  # of numpy's and Python's own
    assert [Image.open(file).size for file in files[:6]] == [(SIDE, 768)] * 5 + [(4000, 3000)]


def test_labels_that_are_no_names_of_files(tmp_path: Path) -> None:
    labels = ["../../etc/passwd", "字" * 300, "\udcff\udcfe", "", "." * 5, "a\0b\nc"]
    result = make(labels=labels)
    files = result.save(tmp_path)
    assert all(file.parent == tmp_path and len(os.fsencode(file.name)) < 255 for file in files)
    assert [prompt.label for prompt in Localization.load(tmp_path).prompts] == labels
    assert file_words("字" * 300) == "字" * 30


def test_images_too_long_for_a_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avgrad.result_files._MAX_JPEG", 50)
    result = make(labels=["one"])
    assert {"image.png", "overlay_0_one.jpg"} <= {file.name for file in result.save(tmp_path)}
    assert np.array_equal(np.asarray(Localization.load(tmp_path).image), np.asarray(result.image))


def test_versions_are_reported() -> None:
    assert avgrad.localization.versions()["torch"] == torch.__version__
