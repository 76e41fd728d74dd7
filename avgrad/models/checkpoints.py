"""Checkpoint files: where they lie and how their tensors are read, memory-mapped and checked."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from avgrad.errors import CheckpointError, out_of_memory
from avgrad.models.model import Calibration

ACCEPTED = "a checkpoint (.pth or .safetensors) is accepted"
BUFFER_BYTES = 1 << 22


def not_loaded(name: str, error: Exception) -> Exception:
    """What to raise where another library could not fetch or read a model's weights, whatever it raised itself.

    Returns:
        A CheckpointError; the error itself where there was not enough memory.
    """
    if out_of_memory(error):
        return error
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CheckpointError(f"the weights of {name} could not be loaded: {reason}")


# ------------------------------------------------------------------ where they lie


def cache_folder() -> Path:
    """The folder of downloaded checkpoints, which need not exist yet.

    It is what the environment variable AVGRAD_CACHE says, or else "avgrad" in the user's cache folder (on
    Linux XDG_CACHE_HOME or ~/.cache).
    """
    chosen = os.environ.get("AVGRAD_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("avgrad", appauthor=False)


def checkpoint_path(name: str) -> Path:
    """Where the downloaded checkpoint of a model lies, whether it is there or not."""
    return cache_folder() / f"{name}.pth"


# ------------------------------------------------------------------ reading them


def _mending(model: str) -> str:
    return f"fetch it with `avgrad download {model}` or name one with `--checkpoint FILE`"


def read_checkpoint(
    path: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    model: str = "imagebind_huge",
) -> dict[str, Tensor]:
    """The tensors of a checkpoint that a model needs.

    Where they already have the type asked for and stay on the CPU, they are the file's memory mapping itself:
    nothing is copied, pages are read when they are first used, and processes share them. Otherwise they are
    converted piece by piece, and little of the file is held in memory meanwhile.

    Args:
        path: a file of `torch.save` (a state dict, or a dict with one as its "state_dict") or of safetensors.
        shapes: the keys wanted and their shapes; other tensors of the file are not read.
        dtype: floating-point type wanted.
        device: where the tensors are wanted.
        model: what `avgrad download` calls the model, for errors.

    Raises:
        CheckpointError: there is no such file, it is no checkpoint, or a key is missing or has another shape.
    """
    device = torch.device(device)
    tensors = open_checkpoint(path, model)
    check_layout(tensors, shapes, Path(path).name)
    tensors = {key: tensors[key] for key in shapes}
    if device.type == "cpu" and all(tensor.dtype == dtype for tensor in tensors.values()):
        return tensors

    try:
        return _convert(path, tensors, dtype, device, model)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); {ACCEPTED}") from error


def _convert(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, model: str
) -> dict[str, Tensor]:
    """Copies of a file's memory-mapped tensors in another type or on another device.

    They are read by read() through a small buffer, since pages of a mapping, once touched, count as memory of
    this process for as long as it is mapped.
    """
    offsets = byte_offsets(path, tensors)
    memory = bytearray(BUFFER_BYTES)
    buffer, view = torch.frombuffer(memory, dtype=torch.uint8), memoryview(memory)
    converted: dict[str, Tensor] = {}
    with open(path, "rb", buffering=0) as file:
        for key, tensor in tensors.items():
            target = converted[key] = torch.empty(tensor.shape, dtype=dtype, device=device)
            if key not in offsets:
                target.copy_(tensor)
                continue
            file.seek(offsets[key])
            for part in torch.split(target.view(-1), BUFFER_BYTES // tensor.itemsize):
                size = part.numel() * tensor.itemsize
                if file.readinto(view[:size]) != size:
                    raise CheckpointError(f"{path} is truncated; {_mending(model)}")
                part.copy_(buffer[:size].view(tensor.dtype))
    return converted


def byte_offsets(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Where the bytes of a checkpoint's tensors begin in the file.

    Args:
        path: the file.
        tensors: some of what `open_checkpoint` gave for it.

    Returns:
        Offsets in bytes; keys are left out whose tensor is not one run of the file's bytes, as where a
        transposed tensor or one of the other byte order was saved, and all of a `.pth` file where torch is too old to
        tell.
    """
    with open(path, "rb", buffering=0) as file:
        head = file.read(8)
        if head.startswith(b"PK"):
            places = _zip_offsets(path)
        else:
            length = int.from_bytes(head, "little")
            header = json.loads(file.read(length))
            places = {key: 8 + length + header[key]["data_offsets"][0] for key in tensors}
        offsets = {}
        for key, tensor in tensors.items():
            if key not in places or not tensor.is_contiguous():
                continue
            file.seek(places[key])
            start = tensor.view(-1)[:16].numpy().tobytes()
            if file.read(len(start)) == start:
                offsets[key] = places[key]
    return offsets


def _zip_offsets(path: str | os.PathLike[str]) -> dict[str, int]:
    try:
        with zipfile.ZipFile(path) as archive:
            orders = [archive.read(name) for name in archive.namelist() if name.endswith("byteorder")]
        if any(order != sys.byteorder.encode() for order in orders):
            return {}  # torch.load would crash on swapping bytes of storages without data
        content = _state_dict(torch.load(path, map_location="meta", weights_only=True))
    except Exception:  # a damaged file, as far as the mapping survives the damage
        return {}
    offsets = {}
    for key, tensor in content.items():
        if isinstance(tensor, Tensor):
            # torch.load notes where in the file a storage is that it loads without data
            place = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
            if place is not None:
                offsets[key] = place + int(tensor.storage_offset()) * tensor.itemsize
    return offsets


def open_checkpoint(path: str | os.PathLike[str], model: str = "imagebind_huge") -> dict[str, Tensor]:
    """All tensors of a checkpoint file, memory-mapped: nothing but their names and shapes is read yet.

    Args:
        path: the file.
        model: what `avgrad download` calls the model, for errors.

    Raises:
        CheckpointError: there is no such file, or it is no checkpoint.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a directory; {ACCEPTED}")
        if not path.exists():
            raise CheckpointError(f"there is no checkpoint {path}; {_mending(model)}")
        if not path.is_file():  # reading a pipe or a device might never end
            raise CheckpointError(f"{path} is not a regular file; {ACCEPTED}")
        with open(path, "rb") as file:
            head = file.read(9)
        if not head:
            raise CheckpointError(f"{path} is empty; {_mending(model)}")
        if head.startswith(b"PK"):
            return _open_zip(path, model)
        if head.startswith(b"\x80"):
            raise CheckpointError(
                f"{path} is a pickle as PyTorch wrote it before 1.6, which cannot be memory-mapped; load it "
                "with torch.load and save its state dict again with torch.save"
            )
        if head.endswith(b"{") and len(head) == 9:
            return load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); {ACCEPTED}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); {_mending(model)}") from error
    raise CheckpointError(f"{path} is not a checkpoint; {ACCEPTED}")


def _open_zip(path: Path, model: str) -> dict[str, Tensor]:
    try:
        if not zipfile.is_zipfile(path):  # a zip file's directory is at its end
            raise CheckpointError(f"{path} is truncated; {_mending(model)}")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects other than tensors, which could run any code and are not loaded; "
            "save the model's state dict alone"
        ) from error
    except Exception as error:  # what a damaged pickle raises is not bounded by anything
        if out_of_memory(error):
            raise
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path} is a zip file but no intact checkpoint ({reason}); {ACCEPTED}") from error
    content = _state_dict(content)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path} holds a {kind} instead of a dict of tensors; {ACCEPTED}")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _state_dict(content: Any) -> Any:
    return content.get("state_dict", content) if isinstance(content, dict) else content


def check_layout(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], source: str) -> None:
    """Check that tensors have the keys and shapes that a model needs.

    Args:
        tensors: under the checkpoint's names; there may be more than are needed.
        shapes: the keys needed and their shapes.
        source: what to call the tensors' origin in messages.

    Raises:
        CheckpointError: names the first key that is missing, has another shape or holds no floating-point
            numbers.
    """
    for key, shape in shapes.items():
        if key not in tensors:
            raise CheckpointError(f"{source} lacks {key}; a checkpoint of this model is expected")
        found = tensors[key]
        if tuple(found.shape) != tuple(shape):
            raise CheckpointError(
                f"{key} in {source} has shape {list(found.shape)}; the configuration asks for {list(shape)}"
            )
        if not found.is_floating_point():
            raise CheckpointError(f"{key} in {source} is of type {found.dtype}; a floating-point type is expected")


class Configuration(NamedTuple):
    """What the metadata of a checkpoint say of its model.

    Attributes:
        config: configuration keywords.
        vocabulary: CLIP token ids of a trimmed vocabulary; None for all of them.
        calibration: turns a score into a probability; None where the training did not learn one.
    """

    config: dict[str, Any]
    vocabulary: list[int] | None
    calibration: Calibration | None


def read_configuration(path: str | os.PathLike[str]) -> Configuration:
    """What the metadata of a safetensors file say of its model, as `training.train` writes them; else nothing.

    Raises:
        CheckpointError: the metadata are not what is expected.
    """
    path = Path(path)
    metadata: dict[str, str] = {}
    with suppress(OSError, SafetensorError):  # no such file, or of another format: `read_checkpoint` reports it
        if path.is_file():  # reading a pipe or a device might never end
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
    try:
        entry = json.loads(metadata.get("avgrad", "{}"))
        config, vocabulary = entry.get("config", {}), entry.get("vocabulary")
        calibrated = "scale" in entry and "bias" in entry
        calibration = Calibration(float(entry["scale"]), float(entry["bias"])) if calibrated else None
        if not isinstance(config, dict) or not (vocabulary is None or isinstance(vocabulary, list)):
            raise TypeError
    except (ValueError, AttributeError, TypeError):
        raise CheckpointError(f"the metadata of {path} describe no ImageBind model; {ACCEPTED}") from None
    return Configuration(config, vocabulary, calibration)
