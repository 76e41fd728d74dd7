"""Images of several heatmaps together, and the command that writes them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avgrad.cli import main
from avgrad.localization import Localization
from avgrad.panels import COLUMNS, PROMPTS, SIDE, layer_panel, method_panel, prompt_panel
from avgrad.prompts import Prompt
from avgrad.scenes import draw_scene, scene_rng


def result(
    layers: int = 3, width: int = 120, height: int = 60, labels: tuple[str, ...] = ("one", "two")
) -> Localization:
    generator = torch.Generator().manual_seed(0)
    return Localization(
        image=Image.new("RGB", (width, height), (0, 0, 255)),
        prompts=[Prompt(torch.ones(4), label, "text") for label in labels],
        maps=torch.rand(len(labels), 3, 6, generator=generator),
        scores=torch.rand(len(labels), generator=generator),
        layers=list(range(layers)),
        layer_maps=torch.rand(len(labels), layers, 3, 6, generator=generator),
        model="some model",
        method="legrad",
    )


def tiles(sheet: Image.Image, expected: Image.Image) -> int:
    """How often an image of one colour, scaled, is in a sheet: its pixels over a tile's."""
    same = (np.asarray(sheet) == np.asarray(expected)[0, 0]).all(-1).sum()
    return int(same // (SIDE * SIDE * expected.height // expected.width))


def test_method_panel() -> None:
    one = result()
    cold = replace(one, maps=torch.zeros_like(one.maps), method="cold")
    sheet = method_panel([one, cold, cold])
    assert sheet.width > 4 * SIDE  # the image and three methods
    assert tiles(sheet, one.image) == 2 * 3  # for both prompts the image and two overlays that show nothing else


def test_layer_panel() -> None:
    many = result(layers=11, labels=("a label that is far too long for its line " * 9, "二"))
    sheet = layer_panel(many)
    assert COLUMNS * SIDE < sheet.width < (COLUMNS + 1) * SIDE
    two_rows = layer_panel(result(layers=11, labels=("one",)))
    assert sheet.height > 1.9 * two_rows.height  # thirteen tiles take two rows, for each prompt
    cold = replace(many, layer_maps=torch.zeros(2, 11, 3, 6), maps=torch.zeros(2, 3, 6))
    assert tiles(layer_panel(cold), cold.image) == 2 * 13
    assert tiles(layer_panel(replace(cold, layer_maps=torch.zeros(2, 1, 3, 6))), cold.image) == 2 * 2


def test_prompt_panel() -> None:
    many = result(labels=tuple(f"label {number}" for number in range(50)))
    cold = replace(many, maps=torch.zeros_like(many.maps))
    assert tiles(prompt_panel(cold), cold.image) == COLUMNS
    assert tiles(method_panel([cold]), cold.image) == 2 * PROMPTS  # a panel of hundreds of prompts shows the first
    assert tiles(layer_panel(replace(cold, layer_maps=torch.zeros(50, 1, 3, 6))), cold.image) == 2 * PROMPTS


def test_large_images_are_shown_small() -> None:
    large = result(width=1200, height=600)
    sheet = method_panel([replace(large, maps=torch.zeros_like(large.maps))] * 2)
    assert tiles(sheet, large.image) == 2 * 3


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(draw_scene(scene_rng("test panels", 0, 0), 160, classes=[0, 13]).image).save(tmp_path / "scene.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVGRAD_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["avgrad", "localize", "scene.jpg", "--text", "a dog", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code

    run("--method", "rollout", "--method", "legrad", "--method", "rollout", "--layers-grid", "--out", "several")
    assert sorted(path.name for path in Path("several").iterdir()) == ["legrad", "methods.png", "rollout"]
    for method in ("legrad", "rollout"):
        names = sorted(path.name for path in Path("several", method).iterdir())
        assert names == ["heatmaps.npz", "image.jpg", "layers.png", "overlay_0_a_dog.jpg", "result.json"]
    assert "rollout" in capsys.readouterr().out
    run("--layers-grid", "--out", "single")
    names = sorted(path.name for path in Path("single").iterdir())
    assert names == ["heatmaps.npz", "image.jpg", "layers.png", "overlay_0_a_dog.jpg", "result.json"]
    one, other = (np.load(Path(out, "heatmaps.npz"))["maps"] for out in ("single", "several/legrad"))
    np.testing.assert_array_equal(one, other)
