"""Where checkpoints lie, how they are read, how files can be wrong, and agreement with the original."""

from __future__ import annotations

import os
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from golden.files import Golden
from safetensors.torch import save_file
from torch import Tensor, nn

from avgrad.errors import CheckpointError
from avgrad.models.checkpoints import cache_folder, checkpoint_path, read_checkpoint
from avgrad.models.imagebind import ImageBind
from benchmarks.loading import byte_ranges, read, save_random_checkpoint
from benchmarks.speed import main

SHAPES = {"a": (3, 5), "b.weight": (7,), "scale": ()}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    return state | {"not.wanted": torch.randn(4, generator=generator)}


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def refusal(path: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, SHAPES if shapes is None else shapes)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ where they lie


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVGRAD_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    assert checkpoint_path("imagebind_huge") == tmp_path / "here" / "imagebind_huge.pth"
    monkeypatch.setenv("AVGRAD_CACHE", "~/here")
    assert cache_folder() == Path.home() / "here"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the XDG folders are Linux's")
@pytest.mark.parametrize("unset", [None, ""])
def test_cache_folder_without_a_choice(unset: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if unset is None:
        monkeypatch.delenv("AVGRAD_CACHE", raising=False)
    else:
        monkeypatch.setenv("AVGRAD_CACHE", unset)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "avgrad"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "avgrad"


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors", "c.bin"])
@pytest.mark.parametrize("saved", [torch.float32, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float64])
def test_reads_what_was_saved(
    name: str, saved: torch.dtype, wanted: torch.dtype, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = save({key: value.to(saved) for key, value in tensors.items()}, tmp_path / name)
    found = read_checkpoint(path, SHAPES, wanted)
    assert set(found) == set(SHAPES)
    for key in SHAPES:
        assert found[key].dtype == wanted
        assert torch.equal(found[key], tensors[key].to(saved).to(wanted))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to ask")
@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_same_type_is_the_mapped_file(name: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tensors, tmp_path / name)
    found = read_checkpoint(path, SHAPES)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    assert all(any(first <= tensor.data_ptr() < last for first, last in spans) for tensor in found.values())
    found["a"].zero_()  # the mapping is private: the file stays as it is
    assert torch.equal(read_checkpoint(path, SHAPES)["a"], tensors["a"])


def test_conversion_leaves_no_mapping(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tensors, tmp_path / "c.pth")
    found = read_checkpoint(path, SHAPES, torch.bfloat16)
    if Path("/proc/self/maps").exists():
        assert str(path) not in Path("/proc/self/maps").read_text()
    path.unlink()
    assert torch.equal(found["a"], tensors["a"].bfloat16())


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_tensors_that_are_no_run_of_bytes(wanted: torch.dtype, tmp_path: Path) -> None:
    """Transposed tensors, slices of one storage, one tensor under two names, one larger than the buffer."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(40, 50, generator=generator)
    tensors = {
        "transposed": whole.T,
        "slice": whole[3:7],
        "columns": whole[:, 2:5],
        "expanded": torch.randn(1, generator=generator).expand(6),
        "same": whole,
        "again": whole,
        "none": torch.empty(0, 4),
        "large": torch.randn(3_000_001, generator=generator),
    }
    torch.save(tensors, tmp_path / "c.pth")
    found = read_checkpoint(tmp_path / "c.pth", {key: value.shape for key, value in tensors.items()}, wanted)
    assert all(torch.equal(found[key], value.to(wanted)) for key, value in tensors.items())


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_other_byte_order(wanted: torch.dtype, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "little.pth")
    numbers = {tensor.numpy().tobytes(): tensor.numpy().byteswap().tobytes() for tensor in tensors.values()}
    with (
        zipfile.ZipFile(tmp_path / "little.pth") as little,
        zipfile.ZipFile(tmp_path / "big.pth", "w") as big,
    ):
        for name in little.namelist():
            content = b"big" if name.endswith("byteorder") else little.read(name)
            big.writestr(name, numbers.get(content, content))
    found = read_checkpoint(tmp_path / "big.pth", SHAPES, wanted)
    assert all(torch.equal(found[key], tensors[key].to(wanted)) for key in SHAPES)


def test_state_dict_in_a_wrapper(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"state_dict": OrderedDict(tensors), "epoch": 3}, path)
    assert torch.equal(read_checkpoint(path, SHAPES)["a"], tensors["a"])


# ------------------------------------------------------------------ every way a file can be wrong


def test_missing_file_names_the_command(tmp_path: Path) -> None:
    message = refusal(tmp_path / "imagebind_huge.pth")
    assert "there is no checkpoint" in message
    assert "`avgrad download imagebind_huge`" in message and "`--checkpoint FILE`" in message


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    path.touch()
    assert "is empty" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)


def test_unreadable(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tensors, tmp_path / "c.pth")
    path.chmod(0)
    superuser = os.geteuid() == 0
    if superuser:  # may read everything: nobody asks instead
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        assert "cannot be read" in refusal(path)
    finally:
        if superuser:
            os.seteuid(0)


def test_path_that_no_file_can_have(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_truncated_anywhere(name: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    content = save(tensors, tmp_path / name).read_bytes()
    for length in [1, 2, 8, 9, 10, 40, *range(50, len(content) - 1, 97), len(content) - 1]:
        path = tmp_path / f"cut{length}"
        path.write_bytes(content[:length])
        refusal(path)
    path.write_bytes(content[: len(content) // 2])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_damaged_anywhere(name: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    content = save(tensors, tmp_path / name).read_bytes()
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "damaged"
    for _ in range(200):
        damaged = bytearray(content)
        for place in torch.randint(len(content), (8,), generator=generator).tolist():
            damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path, SHAPES, torch.float64)
        except CheckpointError:
            continue
        assert {key: tuple(tensor.shape) for key, tensor in found.items()} == SHAPES


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n" + bytes(100), b"\xff\xd8\xff\xe0" + bytes(100), b"<html>not found</html>", b"x"],
)
def test_not_a_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    assert "is not a checkpoint" in refusal(path)


def test_another_zip_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", "<xml/>")
    assert "is a zip file but no intact checkpoint" in refusal(path)


def test_old_pickle(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert "before 1.6" in refusal(path)


def test_objects_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(nn.Linear(3, 3), path)
    assert "Python objects other than tensors" in refusal(path)


def test_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    path = tmp_path / "c.pth"
    torch.save({"a": Evil()}, path)
    refusal(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.jit.save(torch.jit.script(nn.Linear(3, 3)), path)
    assert "no intact checkpoint" in refusal(path)


@pytest.mark.parametrize("content", [[torch.zeros(3)], torch.zeros(3), {"state_dict": 3}])
def test_other_contents(content: object, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(content, path)
    assert "instead of a dict of tensors" in refusal(path)


def test_first_wrong_key_is_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tensors, tmp_path / "c.pth")
    assert "c.pth lacks more" in refusal(path, SHAPES | {"more": (3,), "most": (3,)})
    assert "b.weight in c.pth has shape [7]" in refusal(path, SHAPES | {"b.weight": (8,)})
    path = save(tensors | {"a": torch.zeros(3, 5, dtype=torch.int8)}, path)
    assert "a in c.pth is of type torch.int8" in refusal(path)


# ------------------------------------------------------------------ ImageBind from a file

ORIGINAL_CONFIG: dict[str, Any] = {
    "vision_embed_dim": 32, "vision_num_blocks": 2, "vision_num_heads": 4,
    "audio_embed_dim": 24, "audio_num_blocks": 3, "audio_num_heads": 3,
    "text_embed_dim": 16, "text_num_blocks": 2, "text_num_heads": 2,
    "out_embed_dim": 20,
    "depth_embed_dim": 8, "depth_num_blocks": 1, "depth_num_heads": 2,
    "thermal_embed_dim": 8, "thermal_num_blocks": 1, "thermal_num_heads": 2,
    "imu_embed_dim": 8, "imu_num_blocks": 1, "imu_num_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", ["imagebind_small.pth", "imagebind_small.safetensors"])
def test_golden_embeddings(name: str, golden: Golden, tmp_path: Path) -> None:
    values, metadata = golden.values("imagebind_small")
    path = save(golden.weights("imagebind_small"), tmp_path / name)
    model = ImageBind.from_checkpoint(path, **metadata["config"])
    inputs = {"vision": values["image"], "audio": values["audio"], "text": values["text_tokens"]}
    with torch.no_grad():
        found = {f"{key}_embedding": value for key, value in model(inputs).items()}
        found["vision_embedding_308"] = model({"vision": values["image_308"]})["vision"]
    for key, value in found.items():
        torch.testing.assert_close(value, values[key], atol=1e-5, rtol=0)


def test_only_the_towers_asked_for(golden: Golden, tmp_path: Path) -> None:
    weights = golden.weights("imagebind_small")
    path = save({key: value for key, value in weights.items() if ".audio." in key}, tmp_path / "c.pth")
    config = golden.values("imagebind_small")[1]["config"]
    model = ImageBind.from_checkpoint(path, towers=["audio"], dtype=torch.bfloat16, name="small", **config)
    assert model.towers == ("audio",) and model.name == "small"
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(value.dtype == torch.bfloat16 for value in model.state_dict().values())
    with pytest.raises(CheckpointError, match=r"c.pth lacks modality_preprocessors.vision"):
        ImageBind.from_checkpoint(path, **config)
    with pytest.raises(CheckpointError, match="the configuration asks for"):
        ImageBind.from_checkpoint(path, towers=["audio"])


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_original(seed: int, original: ModuleType, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = original.ImageBindModel(**ORIGINAL_CONFIG).eval()
    with torch.no_grad():
        for tensor in reference.state_dict().values():
            if tensor.ndim and tensor.isfinite().all():  # biases and norms start at 0 and 1, which hide mistakes
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
    tokens = torch.randint(1, 49406, (3, 77), generator=generator)
    tokens[0, 5], tokens[0, 6:], tokens[1, 76], tokens[2, 20] = 49407, 0, 49407, 49407
    inputs = {
        "vision": torch.randn(2, 3, 224, 224, generator=generator),
        "audio": torch.randn(2, 3, 1, 128, 204, generator=generator),
        "text": tokens,
    }
    path = tmp_path / "c.pth"
    torch.save(reference.state_dict(), path)
    with torch.no_grad():
        expected = reference(inputs)
        for model in (ImageBind.from_original(reference), ImageBind.from_checkpoint(path, **ORIGINAL_CONFIG)):
            for key, value in model(inputs).items():
                torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=0)


def test_layout_is_the_originals(original: ModuleType) -> None:
    """The keys and shapes of all three towers, at the original's own defaults."""
    reference = original.ImageBindModel(**ORIGINAL_CONFIG).state_dict()
    small = ImageBind.from_state_dict(reference, **ORIGINAL_CONFIG)
    kept = {key for key in reference if key.split(".")[1] in ("vision", "audio", "text")}
    assert set(small.state_dict()) == kept


def test_from_original_shares_the_weights(original: ModuleType) -> None:
    reference = original.ImageBindModel(**ORIGINAL_CONFIG)
    model = ImageBind.from_original(reference)
    state = reference.state_dict()
    assert all(value.data_ptr() == state[key].data_ptr() for key, value in model.state_dict().items())


def test_from_original_refuses_other_models() -> None:
    with pytest.raises(CheckpointError, match="Linear is not an ImageBind model"):
        ImageBind.from_original(nn.Linear(3, 3))


# ------------------------------------------------------------------ the tools of the load benchmark


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_byte_ranges(name: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tensors, tmp_path / name)
    if name == "c.pth":
        storage = torch.load(path, map_location="meta", weights_only=True)["a"].untyped_storage()
        if not hasattr(storage, "_checkpoint_offset"):  # older releases of torch do not note it
            assert byte_ranges(path, SHAPES) == []
            return
    parts = read(path, byte_ranges(path, SHAPES))
    assert sorted(parts) == sorted(tensors[key].numpy().tobytes() for key in SHAPES)


def test_load_benchmark_refuses_another_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.pth"
    save_random_checkpoint(path, SHAPES)
    assert main(["--load", "--checkpoint", str(path)]) == 2
    assert "lacks modality_preprocessors.vision.cls_token" in capsys.readouterr().err


@pytest.mark.parametrize("entry", ["{", "[]", '{"config": 3}', '{"vocabulary": "dog"}', '{"config": {"depth": 3}}'])
def test_metadata_of_something_else(entry: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "c.safetensors", {"avgrad": entry})
    with pytest.raises(CheckpointError, match="the metadata of"):
        ImageBind.from_checkpoint(tmp_path / "c.safetensors")
