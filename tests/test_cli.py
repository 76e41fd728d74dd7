"""The command line as a user runs it: real processes, real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avgrad.cli import main
from avgrad.localization import Localization
from avgrad.scenes import draw_scene, mix_sound, scene_rng

ROOT = str(Path(__file__).parents[1])


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avgrad.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ROOT, "AVGRAD_CACHE": str(cwd / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(draw_scene(scene_rng("test cli", 0, 0), 160, classes=[0, 13]).image).save(tmp_path / "scene.jpg")
    soundfile.write(tmp_path / "dog.wav", mix_sound(13, scene_rng("test cli", 0, 1), 2.5), 16_000)
    return tmp_path


def test_localize(folder: Path) -> None:
    done = run("localize", "scene.jpg", "--audio", "dog.wav", "--text", "a bell", "--text", "[red]x[/red]", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "using mini" in done.stderr  # no model was named, and no ImageBind checkpoint is here
    assert "dog.wav" in done.stdout
    assert "[red]x[/red]" in done.stdout
    out = folder / "avgrad_out"
    assert len(list(out.glob("overlay_*.jpg"))) == 3
    document = json.loads((out / "result.json").read_text())
    assert [prompt["modality"] for prompt in document["prompts"]] == ["audio", "text", "text"]
    assert {"import", "load", "image", "prompts", "heatmaps"} <= document["seconds"].keys()
    assert document["peak_memory_bytes"] > 1e8
    result = Localization.load(out)
    assert result.heatmaps.shape == (3, 160, 160)
    assert (result.name, result.model, result.device, result.dtype) == ("scene.jpg", "mini", "cpu", "float32")


def test_options(folder: Path) -> None:
    done = run(
        "localize", "scene.jpg", "--text", "dog", "--template", "a photo of a {}", "--template", "a {}",
        "--layers", "-2", "--pooling", "cls", "--size", "96", "--model", "mini", "--dtype", "bfloat16", "--out", "here",
        "--method", "legrad", "--method", "gradcam", "--option", "relu=false", "--option", "class_token=no",
        "--overlays", "0", "--heatmaps",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "using mini" not in done.stderr
    assert "overlays of the first 0 of 1 prompts" in done.stderr
    legrad = json.loads((folder / "here" / "legrad" / "result.json").read_text())
    assert legrad["layers"] == [4, 5]
    assert legrad["options"] == {"pooling": "cls", "size": 96, "correction": None, "relu": False}
    gradcam = json.loads((folder / "here" / "gradcam" / "result.json").read_text())
    assert gradcam["layers"] == [4]
    assert gradcam["options"] == {"pooling": "cls", "size": 96, "correction": None, "class_token": False}
    assert np.load(folder / "here" / "legrad" / "heatmaps.npz")["heatmaps"].shape == (1, 160, 160)
    assert not list((folder / "here").rglob("overlay_*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scene.jpg"], "there is no prompt"),
        (["none.jpg", "--text", "a dog"], "none.jpg"),
        (["dog.wav", "--text", "a dog"], "dog.wav"),
        (["scene.jpg", "--audio", "scene.jpg"], "scene.jpg"),
        (["scene.jpg", "--audio", "none.wav"], "none.wav"),
        (["scene.jpg", "--text", " "], "is empty"),
        (["scene.jpg", "--text", "a", "--template", "b"], "has no {}"),
        (["scene.jpg", "--text", "a", "--model", "imagebind_huge"], "avgrad download imagebind_huge"),
        (["scene.jpg", "--text", "a", "--model", "giant"], "no model 'giant'"),
        (["scene.jpg", "--text", "a", "--model", "open_clip:RN50/openai"], "ModifiedResNet"),
        (["scene.jpg", "--text", "a", "--checkpoint", "dog.wav"], "dog.wav"),
        (["scene.jpg", "--text", "a", "--layers", "9"], "layers 0 to 5"),
        (["scene.jpg", "--text", "a", "--layers", "x"], "'x'"),
        (["scene.jpg", "--text", "a", "--pooling", "max"], "'max' is not one of 'mean', 'cls'"),
        (["scene.jpg", "--text", "a", "--method", "magic"], "magic"),
        (["scene.jpg", "--text", "a", "--dtype", "int8"], "int8"),
        (["scene.jpg", "--text", "a", "--device", "toaster"], "toaster"),
        (["scene.jpg", "--text", "a", "--device", "cuda:77"], "cuda:77"),
        (["scene.jpg", "--text", "a", "--size", "0"], "size"),
        (["scene.jpg", "--text", "a", "--out", "dog.wav"], "is a file"),
        (["scene.jpg", "--text", "a", "--out", "x" * 5000], "File name too long"),
        (["scene.jpg", "--text", "a", "--out", "dog.wav/below"], "cannot be written"),
        (["x" * 5000, "--text", "a"], "File name too long"),
        (["scene.jpg", "--text", "a", "--checkpoint", "x" * 5000], "File name too long"),
        (["scene.jpg", "--text", "a", "--model", "open_clip:ViT-B-16/" + "x" * 5000], "File name too long"),
        (["scene.jpg", "--audio", "\udcff.wav"], "does not exist"),
        (["scene.jpg", "--text", "\udcff"], "not valid Unicode"),
        (["scene.jpg", "--text", "a", "--model", "\udcff"], "there is no model"),
        (["scene.jpg", "--text", "a", "--device", "privateuseone"], "is not available here"),
        (["scene.jpg", "--text", "a", "--device", "meta"], "is not available here"),
        (["scene.jpg", "--text", "a", "--dtype", "float8_e4m3fn"], "is not accepted"),
        (["scene.jpg", "--text", "a", "--option", "relu"], "is not of the form name=value"),
        (["scene.jpg", "--text", "a", "--option", "relu=maybe"], "is not true or false"),
        (["scene.jpg", "--text", "a", "--option", "loud=true"], "has no option 'loud'"),
        (["scene.jpg", "--text", "a", "--option", "backward_dtype=int8"], "backward_dtype"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_a_sentence_and_status_2(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AVGRAD_CACHE", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "argv", ["avgrad", "localize", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_a_mistake_in_a_process_of_its_own(folder: Path) -> None:
    (folder / "scene.jpg").write_bytes((folder / "scene.jpg").read_bytes()[:500])
    done = run("localize", "scene.jpg", "--text", "a dog", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("avgrad: scene.jpg")
    assert "Traceback" not in done.stderr
    assert not (folder / "avgrad_out").exists()


def test_names_that_are_not_utf8(folder: Path) -> None:
    name = os.fsdecode(b"sc\xe8ne.jpg")
    (folder / "scene.jpg").rename(folder / name)
    done = run("localize", name, "--text", "a dog", "--image", name, "--out", os.fsdecode(b"\xe8"), cwd=folder)
    assert done.returncode == 0, done.stderr
    result = Localization.load(folder / os.fsdecode(b"\xe8"))
    assert result.name == "sc\ufffdne.jpg"
    assert result.prompts[1].label == result.name


def test_out_of_memory_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr("avgrad.models.registry.load", load)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["avgrad", "localize", "scene.jpg", "--text", "a dog", "--model", "mini"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("avgrad: not enough memory; try")


def test_models_of_a_pattern(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def models(*arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["avgrad", "models", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code

    assert not models("m*")
    output = capsys.readouterr().out
    assert "mini" in output
    assert "imagebind_huge" not in output
    assert models("nothing*") == 2
    assert "no model matches 'nothing*'" in capsys.readouterr().err
    assert models("mini", "--refused") == 2
    assert "no model that is refused matches 'mini'" in capsys.readouterr().err


def test_models_are_listed(folder: Path) -> None:
    done = run("models", cwd=folder, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for name in ("mini", "imagebind_huge", "open_clip:ViT-B-16/...", "laion2b_s34b_b88k", "avgrad download"):
        assert name in done.stdout


def test_scenes_are_written(folder: Path) -> None:
    assert run("scenes", "set", "--n", "3", "--seed", "5", "--layout", "ade20k-speech", cwd=folder).returncode == 0
    assert len(list((folder / "set" / "frames").iterdir())) == 3
    again = run("scenes", "set", cwd=folder)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert run("scenes", "other", "--prompt", "smell", cwd=folder).returncode == 2


def test_download_takes_imagebind_only(folder: Path) -> None:
    done = run("download", "mini", cwd=folder)
    assert done.returncode == 2
    assert "needs no download" in done.stderr
