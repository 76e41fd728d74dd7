"""The files of PE-AV models: the published layout, read with transformers' configuration and our own reader.

transformers' own `from_pretrained` (5.23) cannot read them beside recent releases of timm (1.0.31): it takes a buffer
of timm's rotary positions for a tied weight. It also reads all towers, whichever are needed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avgrad.encoders.image import Preprocess
from avgrad.errors import CheckpointError, UnsupportedModelError
from avgrad.models.checkpoints import not_loaded, read_checkpoint
from avgrad.models.registry import TOWERS

NAMES = tuple(f"pe-av-{size}{form}" for form in ("", "-16-frame") for size in ("small", "base", "large"))


def check_library(name: str) -> None:
    """Refuses to go on where transformers is not installed, or too old.

    Raises:
        UnsupportedModelError: so it is.
    """
    if find_spec("transformers") is None or find_spec("transformers.models.pe_audio_video") is None:
        raise UnsupportedModelError(
            f"{name} needs transformers 5.18 or later: `pip install avgrad[transformers]`, on Python 3.11 or later"
        )


def build(config: Any, towers: Sequence[str] = TOWERS) -> Any:
    """transformers' PeAudioVideoModel without weights, of the towers asked for; what serves sound and video together,
    and what no embedding needs, is left out.

    Args:
        config: a PeAudioVideoConfig, or a file of one.
        towers: as in `PeAv.from_folder`.
    """
    from transformers import PeAudioVideoConfig, PeAudioVideoModel

    if not isinstance(config, PeAudioVideoConfig):
        if not Path(config).is_file():
            raise CheckpointError(f"there is no {config}; a folder with config.json and the weights is accepted")
        config = PeAudioVideoConfig.from_pretrained(config, local_files_only=True)
    # transformers writes the width of the frame tower's projection as num_classes and does not read it again
    vision = config.audio_video_config.video_config.vision_config
    width = getattr(vision, "num_classes", None)
    if isinstance(width, int) and width != vision.num_labels:
        vision.num_labels = width
    # the library prints complaints about its own docstrings
    with torch.device("meta"), redirect_stdout(io.StringIO()):
        model = PeAudioVideoModel(config)
    unused = [key for key in vars(model)["_modules"] if key not in ("text_model", "audio_model", "video_model")]
    unused += list(vars(model)["_parameters"])
    for key in unused:  # for sound and video together
        delattr(model, key)
    # copies of the text tower, tied to it
    del model.audio_model.text_model, model.video_model.text_model
    if "text" in towers:
        model.text_model.final_norm = nn.Identity()  # the contrastive heads read what comes in front of it
    else:
        del model.text_model
    if "audio" not in towers:
        del model.audio_model
    return model


def load_weights(model: Any, files: Sequence[Path], dtype: torch.dtype, device: torch.device | str, name: str) -> None:
    """Gives a model of `build` its weights.

    Args:
        model: the model, changed in place.
        files: the checkpoint; several files hold a part each.
        dtype, device: of the weights.
        name: of the model, for errors.

    Raises:
        CheckpointError: a file cannot be read, or a tensor is missing or has another shape.
    """
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for file in files:
        wanted = shapes if len(files) == 1 else {key: shapes[key] for key in shard_keys(file) if key in shapes}
        tensors.update(read_checkpoint(file, wanted, dtype, device, name))
    missing = next((key for key in shapes if key not in tensors), None)
    if missing is not None:
        raise CheckpointError(f"the weights of {name} lack {missing}; a complete checkpoint is expected")
    set_weights(model, tensors, device)


def set_weights(model: Any, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
    """Gives a model of `build` its weights, and computes the frequencies of its rotary positions.

    Args:
        model: the model, changed in place.
        tensors: all its weights by their names, which it then shares.
        device: where they are.
    """
    model.load_state_dict(tensors, assign=True)
    for module in model.modules():  # what checkpoints leave out
        empty = [key for key, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        if empty and hasattr(module, "init_non_persistent_buffers"):  # timm's
            for key in empty:
                module._buffers[key] = torch.empty_like(module._buffers[key], device="cpu")
            module.init_non_persistent_buffers()
        elif empty:  # transformers'
            module._buffers.update(type(module)(module.config)._buffers)
    model.to(device)


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files of a folder's weights: one, or the parts of a large one.

    Raises:
        CheckpointError: there are none.
    """
    for file in ("model.safetensors", "pytorch_model.bin"):
        if (folder / file).is_file():
            return [folder / file]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors; a folder with the weights of {name} is expected")
    parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [folder / part for part in sorted(set(parts.values()))]


def shard_keys(file: Path) -> list[str]:
    """The keys of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def read_preprocess(folder: Path, model: Any) -> Preprocess:
    """How the model takes frames, from the file of its video processor; the library's defaults for what it lacks."""
    stored: dict[str, Any] = {}
    for file, key in (("processor_config.json", "video_processor"), ("video_preprocessor_config.json", None)):
        if (folder / file).is_file():
            content = json.loads((folder / file).read_text(encoding="utf-8"))
            stored.update(content if key is None else content.get(key) or {})
    tower = model.video_model.video_encoder.embedder.vision_model.timm_model
    size = stored.get("size") or {}
    own = tower.patch_embed.img_size[0]
    return Preprocess(
        size=int(size.get("height") or size.get("shortest_edge") or own),
        patch_size=int(tower.patch_embed.patch_size[0]),
        mean=tuple(stored.get("image_mean") or (0.5, 0.5, 0.5)),
        std=tuple(stored.get("image_std") or (0.5, 0.5, 0.5)),
        resampling="bicubic" if stored.get("resample") == 3 else "bilinear",
        squash=True,
    )


def cached_folder(name: str) -> Path | None:
    """The folder of a model's files in the hub's cache; None where they are not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(f"facebook/{name}", "config.json")
    return Path(found).parent if isinstance(found, str) else None


def download(name: str) -> Path:
    """Fetches a published model into the hub's cache; the folder of its files.

    Raises:
        CheckpointError: it could not be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(f"facebook/{name}", allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:  # the hub's client and the network raise many kinds
        raise not_loaded(name, error) from error
