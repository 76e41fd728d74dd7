"""ImageNet-Segmentation, perturbation and FunnyBirds, end to end on small data in their layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from eval_layouts import write_funnybirds, write_imagenet, write_imagenet_segmentation
from PIL import Image

import avgrad
from avgrad.errors import UnsupportedModelError
from eval.__main__ import benchmark
from eval.encoder import ClassPrompt, Encoder
from eval.metrics import perturbation as metric
from eval.metrics.funnybirds import part_importances
from eval.metrics.segmentation import foreground_figures, scaled, score_foreground
from eval.runner import Settings
from eval.store import RunFolder
from eval.task import DataError
from eval.tasks.funnybirds import FunnyBirds
from eval.tasks.imagenet_segmentation import ImageNetSegmentation
from eval.tasks.perturbation import Perturbation

NAMES = ["dog", "drum", "guitar", "bell", "bird", "cat"]


@pytest.fixture(scope="module")
def model() -> Any:
    return avgrad.load("mini", towers=("vision", "text"))


def results(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["results"]
    return found


def consistent(out: Path, kind: Any) -> None:
    """The bootstrap's figures of the images as they are."""
    measures = RunFolder.open(out).measures()
    for row in kind.summarize(measures):
        for figure, (value,) in kind.resampler(measures, row)(np.ones((1, len(measures)))).items():
            assert value == pytest.approx(row.figures[figure], abs=1e-12, nan_ok=True), figure


def test_segmentation(tmp_path: Path, model: Any) -> None:
    task = ImageNetSegmentation(write_imagenet_segmentation(tmp_path / "data", 5))
    task.class_names = NAMES
    benchmark(model, task, tmp_path / "run", Settings(("legrad", "cosine"), batch_size=2), {}, workers=1)
    consistent(tmp_path / "run", ImageNetSegmentation)
    classes, scores = avgrad.encoders.text.encode_labels(model, NAMES, "a photo of a {}."), []
    with h5py.File(tmp_path / "data" / "gtsegs_ijcv.mat") as file:
        for number in range(5):
            image = Image.fromarray(file[f"images/{number}"][()].transpose(2, 1, 0))
            label = Image.fromarray(file[f"masks/{number}"][()].T * 255)
            pixels = model.preprocess(image.resize((224, 224), Image.Resampling.BILINEAR))[None]
            truth = np.asarray(label.resize((224, 224), Image.Resampling.NEAREST)) > 0
            predicted = int((model.encode_image(pixels) @ classes.T).argmax())
            raw = avgrad.attribute(model, pixels, classes[predicted][None], per_layer=True).sum(2)[0, 0]
            scores.append(score_foreground(scaled(raw.numpy()), truth))
    legrad, cosine = results(tmp_path / "run")
    for figure, value in foreground_figures(scores).items():
        assert legrad[figure] == pytest.approx(value, abs=1e-4), figure
    assert cosine["mean_iou"] != legrad["mean_iou"]
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/jpeg;base64,") == 5 * 4


def test_damaged_segmentation_data(tmp_path: Path, model: Any) -> None:
    root = write_imagenet_segmentation(tmp_path / "data", 3)
    with h5py.File(root / "gtsegs_ijcv.mat", "a") as file:
        del file["masks/1"]
        file["masks/1"] = np.zeros((3, 3), dtype=np.uint8)
        file["cells/1"][0, 0] = file["masks/1"].ref
    task = ImageNetSegmentation(root)
    task.class_names = NAMES
    benchmark(model, task, tmp_path / "run", Settings(("cosine",)), {}, workers=1)
    problems = json.loads((tmp_path / "run" / "results.json").read_text())["problems"]
    assert problems["counts"] == {"unreadable file": 1} and problems["rows"][0]["row"] == 2
    (root / "gtsegs_ijcv.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(DataError, match="cannot be read"):
        ImageNetSegmentation(root)
    with pytest.raises(DataError, match="does not exist"):
        ImageNetSegmentation(tmp_path)


def test_perturbation(tmp_path: Path, model: Any) -> None:
    task = Perturbation(write_imagenet(tmp_path / "data", 4))
    assert [item.label for item in task.items] == [0, 0, 3, 3]
    task.class_names = NAMES
    benchmark(model, task, tmp_path / "run", Settings(("legrad",), batch_size=2), {}, workers=1)
    consistent(tmp_path / "run", Perturbation)
    rows = results(tmp_path / "run")
    assert [(row["class"], row["test"]) for row in rows] == [
        ("predicted", "positive"),
        ("predicted", "negative"),
        ("target", "positive"),
        ("target", "negative"),
    ]
    encoder, found = Encoder(model, NAMES), []
    for item in task.items:
        image = Image.open(tmp_path / "data" / "val" / item.image).convert("RGB")
        square = image.resize((224, 224), Image.Resampling.BILINEAR)
        pixels = model.preprocess(square)[None]
        prompt = encoder(ClassPrompt(item.label), pixels[0])
        heatmap = avgrad.attribute(model, pixels, prompt[None])[0]
        mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocess.mean, model.preprocess.std))
        parts = [metric.remove_pixels(pixels * std + mean, heatmap, float(step), True) for step in metric.STEPS]
        found.append([int(encoder.logits((part - mean) / std).argmax()) == item.label for part in parts])
    accuracy = np.mean(found, axis=0)
    assert rows[2]["mean_accuracy"] == pytest.approx(accuracy.mean(), abs=1e-12)


@pytest.mark.slow
def test_funnybirds(tmp_path: Path, model: Any) -> None:
    task = FunnyBirds(write_funnybirds(tmp_path / "data", 5))
    assert [(item.label, item.num_background) for item in task.items] == [(0, 1), (1, 2), (2, 1), (3, 2), (0, 1)]
    benchmark(model, task, tmp_path / "run", Settings(("legrad", "cosine"), batch_size=2), {}, workers=1)
    consistent(tmp_path / "run", FunnyBirds)
    legrad, _ = results(tmp_path / "run")
    assert all(0 <= legrad[figure] <= 1 for figure in ("csdc", "preservation_check", "deletion_check"))
    # importances of one image, the whole way again
    item, encoder = task.items[1], Encoder(model, task.class_names)
    image = Image.open(tmp_path / "data" / "test" / f"{item.image}.png").convert("RGB")
    pixels = model.preprocess(image.resize(2 * (model.preprocess.size,), Image.Resampling.NEAREST))[None]
    prompt = encoder(ClassPrompt(item.label), pixels[0])
    raw = avgrad.attribute(model, pixels, prompt[None], per_layer=True).sum(2)[0, 0]
    large = torch.nn.functional.interpolate(raw[None, None], (256, 256), mode="nearest")[0, 0].numpy()
    part_map = np.asarray(Image.open(tmp_path / "data" / "test_part_map" / f"{item.image}.png").convert("RGB"))
    measures = RunFolder.open(tmp_path / "run").measures()
    found = measures.take("parts legrad", np.array([1]))[0, 0]
    np.testing.assert_allclose(found, part_importances(large, part_map), rtol=1e-3)
    one = Image.open(tmp_path / "data" / "test_interventions" / item.image / "body_eye_wing.png").convert("RGB")
    changed = model.preprocess(one.resize(2 * (model.preprocess.size,), Image.Resampling.NEAREST))[None]
    (bird,) = [bird for bird in FunnyBirds._birds(measures, "legrad") if bird.label == 1]
    logits = bird.without[frozenset(["beak", "foot", "tail"])]
    np.testing.assert_allclose(logits, encoder.logits(changed)[0], atol=1e-5)


def test_classifiers_have_logits_and_classes_of_their_own() -> None:
    import timm

    from avgrad.models.timm import TimmModel

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=6, img_size=64)
    network.head.weight.data.normal_()
    encoder = Encoder(TimmModel(network, "timm:tiny"), NAMES)
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder.logits(pixels), network(pixels).detach())
    rows = torch.nn.functional.normalize(network.head.weight.detach(), dim=-1)
    torch.testing.assert_close(encoder(ClassPrompt(4), pixels[0]), rows[4])
    torch.testing.assert_close(encoder(ClassPrompt(None), pixels[0]), rows[encoder.logits(pixels)[0].argmax()])
    for names in (NAMES[:5], [*NAMES, "frog"]):
        with pytest.raises(UnsupportedModelError, match="class"):
            Encoder(TimmModel(network, "timm:tiny"), names)(ClassPrompt(0), pixels[0])


def test_images_of_other_folders_are_left_out(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path, 2)
    (root / "val" / "other").mkdir()
    (root / "val" / "n01440764" / "notes.txt").write_text("mine")
    assert len(Perturbation(root).items) == len(Perturbation(root / "val").items) == 2
    assert len(Perturbation(root, limit=1).items) == 1
    with pytest.raises(DataError, match="has no usable row for perturbation"):
        Perturbation(root / "val" / "other")
    with pytest.raises(DataError, match="cannot be read"):
        Perturbation(tmp_path / "nowhere")
