"""Gradients inside masks, layer by layer."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from eval_small import small_model, write_data
from PIL import Image
from test_engine import random_input, random_view
from typer.testing import CliRunner

from avgrad import attribute
from eval.layer_profile import ALL, LayerProfile, ObjectInScene, inside, layer_profiles, main, objects_in_data, table
from eval.scenes import ROWS, evaluate
from eval.task import DataError, Inputs
from eval.tasks.ade20k import Ade20kSound


def test_a_patch_counts_as_much_as_the_mask_covers_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, mask = torch.rand(4, 3, 5, generator=generator), torch.rand(12, 10, generator=generator) > 0.6
    upsampled = maps.repeat_interleave(4, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(inside(maps, mask), upsampled[:, mask].mean(1))
    assert inside(maps, mask & False) is None


def test_classes_weigh_the_same() -> None:
    view = random_view()
    pixels, prompts = random_input(view, batch=3, height=12, width=16, prompts=1)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2:4] = True
    objects = [ObjectInScene(*rest, mask) for rest in zip(("a", "b", "b"), pixels, prompts[:, 0], strict=True)]
    means = attribute(view, pixels, prompts, per_layer=True)[:, 0, :, 1].mean(-1)  # the middle row of patches
    found = layer_profiles(view, iter([*objects, objects[0]._replace(mask=mask & False)]))
    assert {name: profile.objects for name, profile in found.items()} == {ALL: 3, "a": 1, "b": 2}
    torch.testing.assert_close(found["b"].mean, means[1:].mean(0))
    torch.testing.assert_close(found[ALL].mean, (means[0] + means[1:].mean(0)) / 2)
    assert found[ALL].normalized.min() == 0
    assert found[ALL].normalized.max() == 1
    assert (LayerProfile(1, torch.ones(3)).normalized == 0).all()
    lines = list(csv.DictReader(table({"m": found}).splitlines()))
    assert len(lines) == 3 * 3
    assert lines[0]["class"] == ALL
    assert float(lines[4]["mean_gradient"]) == pytest.approx(float(found["a"].mean[1]), rel=1e-5)
    with pytest.raises(DataError, match="all masks are empty"):
        layer_profiles(view, iter([]))


def test_data_by_sound(tmp_path: Path) -> None:
    data, model = Ade20kSound(write_data(tmp_path, "sound", 3)), small_model()
    found = layer_profiles(model.vision, objects_in_data(model, data, by_text=False, template="{}"))
    assert list(found) == [ALL, "bell", "cat", "dog"]
    sample = data.load(data.items[0], Inputs.of(model))
    prompt = model.encode_audio([sample.prompts[0]])[0]
    maps = attribute(model.vision, sample.pixels[None], prompt[None], per_layer=True)[0, 0]
    torch.testing.assert_close(found["dog"].mean, inside(maps, torch.from_numpy(sample.truth["mask"])))


def test_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "run"), "--n", "2"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("mini: ")
    lines = list(csv.DictReader((tmp_path / "run" / "layer_profile.csv").read_text().splitlines()))
    assert {line["layer"] for line in lines} == {str(layer) for layer in range(6)}
    with Image.open(tmp_path / "run" / "layer_profile.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    assert CliRunner().invoke(app, ["--out", "x", "--prompt", "smell"]).exit_code == 2
    wrong = CliRunner().invoke(app, ["--out", "x", "--data", str(tmp_path)])
    assert wrong.exit_code == 1
    assert "prompted_segmentation.csv" in wrong.output


@pytest.mark.slow
def test_scenes_by_every_method() -> None:
    from avgrad import load

    rows = [row for row in ROWS if row != "transformer_attribution"]
    figures = evaluate(load("mini"), 1, 0, 64, rows)  # type: ignore[arg-type]
    assert [key for key in figures["sound"] if key != "roc_auc"] == rows
    assert [key for key in figures["text"] if key != "roc_auc"] == ["legrad"]
    assert all(0 < figures["sound"][row]["mIoU"] <= 1 for row in rows)
