"""Where the golden values lie, and how they are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from golden import frozen
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

VARIABLE = "AVGRAD_GOLDEN"


class Golden:
    """The golden values: those of the folder that `AVGRAD_GOLDEN` names, then those beside this file.

    `golden(name)` finds a file; the methods read the small models' files and what belongs to them.

    Args:
        scratch: folder to write samples to.
    """

    def __init__(self, scratch: Path) -> None:
        own = Path(__file__).parent
        chosen = os.environ.get(VARIABLE)
        self._folders = [Path(chosen), own] if chosen else [own]
        if not self._folders[0].is_dir():
            raise NotADirectoryError(f"{VARIABLE}={chosen} is not a folder; a folder of golden values is expected")
        self._scratch = scratch

    def __call__(self, name: str) -> Path:
        """The path of a file.

        Args:
            name: relative to the folder of golden values, for example "benchmarks/ssl_metrics.npz".

        Raises:
            FileNotFoundError: neither folder has it.
        """
        for folder in self._folders:
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, self._folders))}")

    def values(self, model: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Inputs and outputs of a small model, and the metadata of their file.

        Args:
            model: "imagebind_small", for example.
        """
        path = self(f"{model}.io.safetensors")
        values, metadata = load_file(path), _metadata(path)
        drawn = frozen.inputs(model, metadata.get("drawn_inputs", {}))
        return {key: torch.from_numpy(value) for key, value in drawn.items()} | values, metadata

    def weights(self, model: str) -> dict[str, Tensor]:
        """State dict of a small model: that of a file `MODEL.weights.safetensors`, else drawn by `frozen.weights`.

        Args:
            model: "imagebind_small", for example.
        """
        try:
            return load_file(self(f"{model}.weights.safetensors"))
        except FileNotFoundError:
            layout = _metadata(Path(__file__).parent / f"{model}.io.safetensors")["drawn_weights"]
            return {key: torch.from_numpy(value) for key, value in frozen.weights(model, layout).items()}

    @property
    def samples(self) -> Path:
        """The folder of the recordings and images, `NAME_audio.wav` and `NAME_image.*`, of imagebind_media.io."""
        folder = self("imagebind_media.io.safetensors").parent
        for samples in (folder / "samples", folder.parent / "samples"):
            if samples.is_dir():
                return samples
        if not any(self._scratch.iterdir()):
            frozen.write_samples(self._scratch)
        return self._scratch


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}


def sampled(values: Tensor, expected: Tensor) -> Tensor:
    """Every n-th row and column of `[..., H, W]`, as they are stored in `expected`."""
    step = round(values.shape[-1] / expected.shape[-1])
    return values[..., ::step, ::step]
