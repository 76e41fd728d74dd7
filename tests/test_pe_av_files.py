"""Loading PE-AV models: the hub's cache, folders, files of weights, towers, downloads and what is wrong with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pe_av_small as small
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import avgrad
from avgrad.cli import app
from avgrad.errors import CheckpointError, UnsupportedModelError
from avgrad.models import pe_av_files
from avgrad.models.registry import entries


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save(tmp_path_factory.mktemp("pe_av"))


@pytest.fixture
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, with pe-av-base in it: the folder of its snapshots."""
    from huggingface_hub import constants, file_download

    for module in (constants, file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path), raising=False)
    repository = tmp_path / "models--facebook--pe-av-base"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    shutil.copytree(folder, snapshot)
    return snapshot


def embeddings(model: Any) -> Tensor:
    """An image's, a text's and a sound's, `[3, D]`."""
    pixels = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)
    sound = model.audio_preprocess.clip(torch.linspace(-1, 1, 4000).sin()[None])
    return torch.cat([model.encode_image(pixels), model.encode_text(["a dog"]), model.encode_audio([sound])])


def expected(folder: Path) -> Tensor:
    return embeddings(avgrad.load("pe-av-small", checkpoint=folder))


def test_hubs_cache(cache: Path, folder: Path) -> None:
    loaded = avgrad.load("pe-av-base")
    assert loaded.name == "pe-av-base" and loaded.modalities == ("audio", "text")
    assert torch.equal(embeddings(loaded), expected(folder))
    states = {entry.name: entry.weights for entry in entries("pe-av-*")}
    assert states["pe-av-base"] == "here" and states["pe-av-large"] == "`avgrad download pe-av-large`"
    with pytest.raises(CheckpointError, match="`avgrad download pe-av-small`, or name a folder"):
        avgrad.load("pe-av-small")


@pytest.mark.slow
def test_nothing_is_printed(folder: Path) -> None:
    code = f"import avgrad; avgrad.load('pe-av-small', checkpoint={str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == ""


def test_weights_are_the_mapped_file(folder: Path) -> None:
    model: Any = avgrad.load("pe-av-small", checkpoint=folder)
    pointers = [weight.data_ptr() for weight in model.model.parameters()]
    assert max(pointers) - min(pointers) < (folder / "model.safetensors").stat().st_size
    assert not any(weight.is_meta for weight in [*model.model.parameters(), *model.model.buffers()])


@pytest.mark.parametrize("form", ["safetensors", "pth", "bin"])
def test_files_of_weights(cache: Path, folder: Path, tmp_path: Path, form: str) -> None:
    """A file belongs to the configuration beside it, or else to the published one."""
    state = load_file(folder / "model.safetensors")
    file = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state}, file)
    assert torch.equal(embeddings(avgrad.load("pe-av-base", checkpoint=file)), expected(folder))
    with pytest.raises(CheckpointError, match="are not here"):
        avgrad.load("pe-av-large", checkpoint=file)
    if form == "bin":
        beside = tmp_path / "beside"
        shutil.copytree(folder, beside, ignore=shutil.ignore_patterns("*.safetensors"))
        file.rename(beside / "pytorch_model.bin")
        assert torch.equal(expected(beside), expected(folder))
        assert torch.equal(expected(beside / "pytorch_model.bin"), expected(folder))


def test_weights_in_parts(folder: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(folder, parts, ignore=shutil.ignore_patterns("*.safetensors"))
    state = load_file(folder / "model.safetensors")
    files = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(state)}
    for file in set(files.values()):
        save_file({key: tensor for key, tensor in state.items() if files[key] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert torch.equal(expected(parts), expected(folder))
    (parts / file).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read \(.*of-00002"):
        expected(parts)


def test_processors_of_the_published_layout(folder: Path, tmp_path: Path) -> None:
    """One file for each processor, as older releases of transformers wrote them."""
    older = tmp_path / "older"
    shutil.copytree(folder, older, ignore=shutil.ignore_patterns("processor_config.json"))
    content = json.loads((folder / "processor_config.json").read_text())
    (older / "preprocessor_config.json").write_text(json.dumps(content["feature_extractor"]))
    video = {**content["video_processor"], "image_mean": [0.25, 0.5, 0.75]}
    (older / "video_preprocessor_config.json").write_text(json.dumps(video))
    model: Any = avgrad.load("pe-av-small", checkpoint=older)
    assert model.preprocess.mean == (0.25, 0.5, 0.75) and model.preprocess.squash
    assert torch.equal(embeddings(model), expected(folder))


@pytest.mark.parametrize("towers", [("vision",), ("vision", "text"), ("vision", "audio")])
def test_towers(folder: Path, towers: tuple[str, ...]) -> None:
    model: Any = avgrad.load("pe-av-small", checkpoint=folder, towers=towers)
    assert model.modalities == tuple(tower for tower in ("audio", "text") if tower in towers)
    whole: Any = avgrad.load("pe-av-small", checkpoint=folder)
    count = [sum(weight.numel() for weight in found.model.parameters()) for found in (model, whole)]
    assert count[0] < count[1]
    pixels = torch.zeros(1, 3, 28, 28)
    assert torch.equal(model.encode_image(pixels), whole.encode_image(pixels))
    for tower, encode in (("text", lambda: model.encode_text(["a"])), ("audio", lambda: model.encode_audio([]))):
        if tower not in towers:
            with pytest.raises(CheckpointError, match=f"loaded without its {tower} tower"):
                encode()
    localizer = avgrad.Localizer(model)
    localizer.set_image(Image.new("RGB", (40, 30)))
    if "audio" not in towers:
        with pytest.raises(UnsupportedModelError, match="not sounds"):
            localizer.localize(audio=(torch.linspace(-1, 1, 4000).sin()[None], 16_000))


def test_half_precision(folder: Path) -> None:
    model: Any = avgrad.load("pe-av-small", checkpoint=folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    image, text, sound = (embeddings(model) - expected(folder)).norm(dim=-1)
    # random weights make a chaotic codec
    assert float(image) < 0.05 and float(text) < 0.05 and bool(sound.isfinite())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "there is no .*config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is empty.*`avgrad download pe-av-small`"),
        (lambda f: (f / "processor_config.json").unlink(), "could not be loaded"),
        (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "could not be loaded"),
        (lambda f: (f / "config.json").write_text("{"), "could not be loaded"),
    ],
)
def test_incomplete_folders(folder: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(folder, spoiled)
    spoil(spoiled)
    with pytest.raises(CheckpointError, match=message):
        avgrad.load("pe-av-small", checkpoint=spoiled)


def test_missing_and_misshapen_weights(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    key = "video_model.video_head.proj.weight"
    for changed, message in ((None, f"lacks {key}"), (state[key][:1].clone(), f"{key} in .* has shape")):
        other = {name: tensor for name, tensor in state.items() if name != key}
        if changed is not None:
            other[key] = changed
        save_file(other, tmp_path / "other.safetensors")
        shutil.copy(folder / "config.json", tmp_path)
        for file in folder.glob("*processor*"):
            shutil.copy(file, tmp_path)
        for file in folder.glob("tokenizer*"):
            shutil.copy(file, tmp_path)
        with pytest.raises(CheckpointError, match=message):
            avgrad.load("pe-av-small", checkpoint=tmp_path / "other.safetensors")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pe_av_files, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModelError, match=r"pe-av-small needs transformers 5\.18 .*Python 3\.11"):
        avgrad.load("pe-av-small")


def test_names_import_no_other_family() -> None:
    code = (
        "import sys; from avgrad.models import registry; registry._find('pe-av-small'); "
        "assert 'open_clip' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------ the command line


def test_download(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.append(repository)
        assert {"*.json", "*.safetensors"} <= set(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    result = CliRunner().invoke(app, ["download", "pe-av-large-16-frame"])
    assert result.exit_code == 0 and asked == ["facebook/pe-av-large-16-frame"]
    assert "Apache-2.0" in result.output

    def broken(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    result = CliRunner().invoke(app, ["download", "pe-av-base"])
    assert isinstance(result.exception, CheckpointError) and "no route to host" in str(result.exception)


def test_localize_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), (200, 30, 60)).save(tmp_path / "image.png")
    arguments = ["localize", str(tmp_path / "image.png"), "--text", "a dog", "--model", "pe-av-small"]
    result = CliRunner().invoke(app, [*arguments, "--checkpoint", str(folder), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out").is_dir()
