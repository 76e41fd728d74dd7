"""A run on disk: what it was begun with, and one Parquet file per shard.

    RUN/run.json                 what the rows depend on
    RUN/prompts.npy              embeddings of the prompts of all rows, float32 [P, D]
    RUN/shards/000000.parquet    the first rows, and so on; `avgrad.bulk.schema` documents the columns
    RUN/embeddings.arrow         all image embeddings, for `avgrad.find`; made when it is first needed

A shard's file appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from avgrad.bulk.item import Item
from avgrad.bulk.schema import printable_label
from avgrad.bulk.shard import Explainer
from avgrad.engine.attribute import normalizes_first
from avgrad.engine.methods import get_method
from avgrad.errors import InputError
from avgrad.files import difference, write_atomic
from avgrad.localization import plain_options, versions
from avgrad.models.fingerprint import model_fingerprint
from avgrad.prompts import Prompt

MANIFEST, PROMPTS, INDEX = "run.json", "prompts.npy", "embeddings.arrow"


def make_manifest(
    explainer: Explainer,
    items: Sequence[Item],
    shard_size: int,
    threads: int,
    checkpoint: str | None,
    device: torch.device | str | None,
) -> dict[str, Any]:
    """Everything that the rows depend on, ready for JSON.

    Args:
        explainer: with model, settings and prompts.
        items: the collection.
        shard_size: images per shard.
        threads: CPU threads of one process; the order of sums depends on it.
        checkpoint: the file that the model's weights came from; None for the published ones.
        device: where it is computed; None for where the model is.
    """
    model, settings = explainer.model, explainer.settings
    digest = hashlib.sha256()
    for item in items:
        digest.update((json.dumps(astuple(item)) + "\n").encode())
    return {
        "model": {
            "name": model.name,
            "checkpoint": checkpoint,
            "fingerprint": model_fingerprint(model),
            "device": model.device.type if device is None else torch.device(device).type,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "method": settings.method,
        "layers": get_method(settings.method).layers(model.vision, settings.layers, settings.options),
        "options": plain_options(
            {
                "pooling": settings.pooling,
                "size": explainer.size,
                "correction": settings.correction,
                **settings.options,
            }
        ),
        "normalized_first": normalizes_first(model.vision),
        "prompts": [
            {"label": printable_label(prompt.label), "modality": prompt.modality} for prompt in explainer.prompts
        ],
        "templates": explainer.templates if isinstance(explainer.templates, str) else list(explainer.templates),
        "images": len(items),
        "images_fingerprint": digest.hexdigest(),
        "shard_size": shard_size,
        "batch_size": explainer.batch_size,
        "threads": threads,
        "versions": versions(),
    }


def _embeddings(explainer: Explainer) -> np.ndarray:
    width = explainer.model.vision.embed_dim
    return np.array([prompt.embedding.float().numpy() for prompt in explainer.prompts], np.float32).reshape(-1, width)


class RunFolder:
    """The folder of a run. It can be pickled.

    Attributes:
        path: of the folder.
        manifest: what `make_manifest` gave when the run was begun.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def begin(cls, path: Path, manifest: Mapping[str, Any], explainer: Explainer) -> RunFolder:
        """Begins a run, or goes on with one that was begun with the same manifest.

        Raises:
            InputError: the folder holds a run with another manifest, or something else, or cannot be written.
        """
        manifest = json.loads(json.dumps(manifest))
        try:
            if (path / MANIFEST).exists():
                existing = cls.open(path)
                changed = difference(existing.manifest, manifest)
                if changed:
                    raise InputError(
                        f"{path} holds a run with {changed}; go on with the same arguments, images and model, or name "
                        "another folder"
                    )
                existing.check_prompts(_embeddings(explainer))
                return existing
            if path.exists() and (not path.is_dir() or any(path.glob("[!.]*"))) and not (path / PROMPTS).exists():
                raise InputError(f"{path} exists and holds no run; name another folder")
            (path / "shards").mkdir(parents=True, exist_ok=True)
            write_atomic(path / PROMPTS, lambda file: np.save(file, _embeddings(explainer)))
            write_atomic(path / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror or error}); name another folder") from None
        return cls(path, manifest)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that was begun before.

        Raises:
            InputError: there is none.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path} holds no run; expected the --out of `avgrad localize` over many images") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path / MANIFEST} cannot be read ({error})") from None
        if not isinstance(manifest, dict) or not {"images", "shard_size", "model", "prompts"} <= manifest.keys():
            raise InputError(f"{path / MANIFEST} is not the manifest of a run")
        return cls(path, manifest)

    def embeddings(self) -> np.ndarray:
        """Embeddings of the prompts of all rows, float32 `[P, D]`.

        Raises:
            InputError: they cannot be read.
        """
        try:
            found: np.ndarray = np.load(self.path / PROMPTS, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.path / PROMPTS} cannot be read ({error})") from None
        return found

    def prompts(self) -> list[Prompt]:
        """The prompts of all rows.

        Raises:
            InputError: they cannot be read.
        """
        embeddings = torch.from_numpy(self.embeddings())
        return [
            Prompt(embedding, entry["label"], entry["modality"])
            for embedding, entry in zip(embeddings, self.manifest["prompts"], strict=True)
        ]

    def check_prompts(self, embeddings: np.ndarray) -> None:
        """Refuses prompts that are not those of the run; another machine may round them otherwise.

        Raises:
            InputError: a prompt has another embedding.
        """
        kept = self.embeddings()
        if kept.shape != embeddings.shape or not np.allclose(kept, embeddings, atol=1e-2 * np.abs(kept).max(initial=0)):
            raise InputError(f"{self.path} holds a run with other prompts of these names; name another folder")

    # ------------------------------------------------------------------ shards

    def bounds(self, number: int) -> tuple[int, int]:
        """The first row of a shard, and the one behind its last."""
        size = self.manifest["shard_size"]
        return number * size, min((number + 1) * size, self.manifest["images"])

    @property
    def num_shards(self) -> int:
        return -(-int(self.manifest["images"]) // int(self.manifest["shard_size"]))

    def shard(self, number: int) -> Path:
        """The file of a shard, whether it is there or not."""
        return self.path / "shards" / f"{number:06d}.parquet"

    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        return [number for number in range(self.num_shards) if not self.shard(number).exists()]

    def shards(self) -> list[Path]:
        """The files of the shards that are there."""
        return [path for path in map(self.shard, range(self.num_shards)) if path.exists()]

    def write(self, number: int, rows: pa.Table) -> None:
        """Writes a shard.

        Raises:
            OSError: it cannot be written.
        """
        write_atomic(self.shard(number), lambda file: pq.write_table(rows, file, compression="zstd"))

    def tidy(self) -> None:
        """Removes what killed processes left behind. Only for finished runs: others may still be writing."""
        for part in (self.path / "shards").glob(".*.part"):
            part.unlink(missing_ok=True)
