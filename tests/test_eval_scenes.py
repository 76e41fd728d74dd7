"""Synthetic scenes and layer profiles as benchmarks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_small import small_model, write_data
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import avgrad
from avgrad.errors import InputError
from eval.__main__ import app, benchmark
from eval.compare import compare_runs
from eval.encoder import Encoder
from eval.methods import attribute_all, parse_method
from eval.metrics.prompted_segmentation import prompted_segmentation
from eval.runner import Settings
from eval.store import RunFolder
from eval.task import DataError, Inputs
from eval.tasks.ade20k import Ade20kSound
from eval.tasks.layer_profile import ALL, LayerProfile, inside, normalized
from eval.tasks.scenes import Scenes


@pytest.fixture(scope="module")
def mini() -> Any:
    return avgrad.load("mini")


def results(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["results"]
    return found


def test_scenes(mini: Any, tmp_path: Path) -> None:
    """The whole way again by the public face, object by object."""
    task = Scenes(None, 5, prompts="text+sound")
    benchmark(mini, task, tmp_path, Settings(("legrad", "legrad:relu=false"), batch_size=2), {}, workers=1)
    rows = results(tmp_path)
    assert [(row["prompt"], row["method"]) for row in rows] == [
        ("text", "legrad"),
        ("text", "legrad:relu=false"),
        ("sound", "legrad"),
        ("sound", "legrad:relu=false"),
        ("none", "central blob"),
    ]
    encoder, inputs = Encoder(mini), Inputs.of(mini)
    maps, masks, classes, images, prompts, present = [], [], [], [], [], []
    for item in task.items:
        case = task.load(item, inputs)
        assert len(case.truth["classes"]) == item.objects
        embeddings = encoder.batch([case.prompts], case.pixels[None])[0][: item.objects]
        maps.append(avgrad.attribute(mini, case.pixels[None], embeddings, relu=False)[0])
        masks.append(case.truth["masks"])
        classes += case.truth["classes"].tolist()
        images.append(mini.encode_image(case.pixels[None])[0])
        prompts.append(embeddings)
        present.append(set(case.truth["classes"].tolist()))
    score = prompted_segmentation(torch.cat(maps), np.concatenate(masks), classes)
    assert rows[1]["mean_average_precision"] == pytest.approx(score.mean_average_precision, abs=1e-4)
    assert rows[1]["mean_iou"] == pytest.approx(score.mean_iou, abs=1e-4)
    scores = (torch.stack(images) @ torch.cat(prompts).T).flatten().tolist()
    truth = [number in own for own in present for number in classes]
    assert rows[0]["roc_auc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    assert rows[1]["roc_auc"] is None
    measures = RunFolder.open(tmp_path).measures()
    row = Scenes.summarize(measures)[1]
    for figure, (value,) in Scenes.resampler(measures, row)(np.ones((1, 5))).items():
        assert value == pytest.approx(row.figures[figure], abs=2e-3), figure


def test_a_longer_series_starts_with_the_shorter_one(mini: Any) -> None:
    short, long = Scenes(None, 2, prompts="speech"), Scenes(None, 9, prompts="speech")
    assert short.items == long.items[:2]
    cases = [task.load(task.items[1], Inputs.of(mini)) for task in (short, long)]
    assert cases[0].digest == cases[1].digest
    assert all(torch.equal(*pair) for pair in zip(cases[0].prompts, cases[1].prompts, strict=True))


def test_a_patch_counts_as_much_as_the_mask_covers_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, mask = torch.rand(4, 3, 5, generator=generator), torch.rand(12, 10, generator=generator) > 0.6
    upsampled = maps.repeat_interleave(4, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(inside(maps, mask), upsampled[:, mask].mean(1))
    assert (normalized(np.ones(3)) == 0).all()


def test_layer_profile_of_data(tmp_path: Path) -> None:
    """Classes weigh the same, however many objects they have."""
    root, model = write_data(tmp_path / "data", "sound", 4), small_model()
    benchmark(model, LayerProfile(root, prompt="sound"), tmp_path / "run", Settings((), batch_size=2), {}, workers=1)
    data = Ade20kSound(root)
    means: dict[str, list[torch.Tensor]] = {}
    for item in data.items:
        case = data.load(item, Inputs.of(model))
        prompt = model.encode_audio([case.prompts[0]])  # type: ignore[list-item]
        maps = avgrad.attribute(model.vision, case.pixels[None], prompt, per_layer=True)[0, 0]
        means.setdefault(item.class_name, []).append(inside(maps, torch.from_numpy(case.truth["mask"])))
    by_class = {name: torch.stack(own).mean(0) for name, own in means.items()}
    expected = {ALL: torch.stack(list(by_class.values())).mean(0), **by_class}
    rows = results(tmp_path / "run")
    assert [row["layer"] for row in rows] == ["0", "1", "2"]
    for layer, row in enumerate(rows):
        found = {part["class_name"]: part for part in row["details"]}
        assert {name: part["objects"] for name, part in found.items()} == {ALL: 4, "dog": 2, "cat": 1, "bell": 1}
        for name, profile in expected.items():
            assert found[name]["mean_gradient"] == pytest.approx(float(profile[layer]), rel=1e-5)
            assert found[name]["normalized"] == pytest.approx(normalized(profile.double().numpy())[layer], abs=1e-5)
        assert row["normalized"] == found[ALL]["normalized"]
    measures = RunFolder.open(tmp_path / "run").measures()
    for own in LayerProfile.summarize(measures):
        drawn = LayerProfile.resampler(measures, own)(np.ones((1, 4)))["normalized"]
        assert drawn[0] == pytest.approx(own.figures["normalized"], abs=1e-12)
    with open(tmp_path / "run" / "details.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 4


def test_masks_without_pixels(tmp_path: Path) -> None:
    from PIL import Image

    root = write_data(tmp_path / "data", "sound", 1)
    Image.new("RGB", (80, 60)).save(root / "annotations" / "scene 0_seg.png")
    with pytest.raises(DataError, match="all masks are empty"):
        benchmark(small_model(), LayerProfile(root, prompt="sound"), tmp_path / "run", Settings(()), {}, workers=1)


def test_commands(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--workers", "1"])

    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    done = run("layer-profile", "--limit", "3", "--out", a)
    assert done.exit_code == 0, done.output
    assert done.output.count("| mini, legrad |") == 6
    assert "data:image/jpeg" in (tmp_path / "a" / "report.html").read_text()
    assert run("layer-profile", "--limit", "3", "--out", b, "--option", "seed=2").exit_code == 0
    assert "Layer" in compare_runs(tmp_path / "a", tmp_path / "a", None, None, 100, 0, False)
    again = run("layer-profile", "--limit", "3", "--out", a, "--option", "prompt=sound")
    assert again.exit_code == 1 and "holds a run with" in again.output
    for arguments, code, message in (
        (("scenes", "--out", a, "--data", "x"), 1, "makes its own data"),
        (("scenes", "--out", a, "--option", "smell=1"), 1, "has no option 'smell'; its options: seed, prompts"),
        (("scenes", "--out", a, "--option", "seed=x"), 1, "'x' is not a whole number"),
        (("scenes", "--out", a, "--option", "prompts=smell"), 1, "some of sound+speech+text"),
        (("scenes", "--out", a, "--method", "legrad:relu=7"), 2, "is not true or false"),
        (("layer-profile", "--out", a, "--method", "legrad"), 2, "explains in its own way"),
        (("layer-profile", "--out", a, "--option", "prompt=smell"), 1, "text, sound or speech"),
        (("vggss", "--out", a), 2, "folder is missing"),
    ):
        wrong = run(*arguments)
        assert wrong.exit_code == code, wrong.output
        assert message in " ".join(wrong.output.replace("│", " ").split()), wrong.output


def test_methods_with_options() -> None:
    assert parse_method("gradcam:class_token=false,pooling=cls") == (
        "gradcam",
        {"class_token": False, "pooling": "cls"},
    )
    for text, message in (
        ("smell", "smell"),
        ("legrad:smell=1", "has no option 'smell'"),
        ("legrad:pooling=max", "'pooling=max' is not one of pooling=mean, pooling=cls"),
    ):
        with pytest.raises(InputError, match=message):
            parse_method(text)
    model = small_model()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    prompts = torch.nn.functional.normalize(torch.randn(2, 1, 24, generator=torch.Generator().manual_seed(1)), dim=-1)
    methods = ("legrad", "legrad:pooling=cls", "gradcam:every_layer=true")
    maps = attribute_all(model.vision, pixels, prompts, methods)
    for text, options in zip(methods, ({}, {"pooling": "cls"}, {"every_layer": True}), strict=True):
        name = text.split(":")[0]
        expected = avgrad.attribute(model, pixels, prompts, name, per_layer=True, **options).sum(2)  # type: ignore[arg-type]
        torch.testing.assert_close(maps[text], expected)
