"""A run on disk: a manifest of its arguments, and one file of results per batch, written once and never changed.

A batch's file appears under its name only when it is complete, so a run that was killed resumes with the
first batch that has none.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avgrad.errors import InputError
from avgrad.files import write_atomic
from eval.dataset import Problem

Array = np.ndarray[Any, np.dtype[Any]]

MANIFEST = "manifest.json"


class RunError(InputError):
    """A run that cannot be resumed or read; the message says why."""


@dataclass(frozen=True)
class Records:
    """Results of N evaluated items, in the order of the data set.

    Attributes:
        rows: number of each item's row, `[N]`.
        images: name of each item's image.
        class_ids: `[N]`.
        class_names: one per item.
        masks: pixels of the class, packed eight pixels to a byte, `[N, side * side / 8]`.
        maps: for each method raw heatmaps on the patch grid, float32 `[N, P, gh, gw]`.
        digests: SHA-256 of each item's files, `[N, 32]`.
        problems: of items that were loaded, evaluated or not.
    """

    rows: Array
    images: Array
    class_ids: Array
    class_names: Array
    masks: Array
    maps: Mapping[str, Array]
    digests: Array
    problems: Sequence[Problem]

    def to_bytes(self) -> bytes:
        """The content of a file that `from_bytes` reads."""
        problems = json.dumps([[p.row, p.kind, p.message] for p in self.problems])
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        arrays.update({f"map {name}": maps for name, maps in self.maps.items()})
        stream = io.BytesIO()
        np.savez(stream, problems=problems, **arrays)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Records:
        """What `to_bytes` wrote."""
        with np.load(io.BytesIO(content)) as file:
            maps = {name.removeprefix("map "): file[name] for name in file.files if name.startswith("map ")}
            problems = [Problem(*fields) for fields in json.loads(str(file["problems"]))]
            return cls(**{name: file[name] for name in _ARRAYS}, maps=maps, problems=problems)

    @classmethod
    def join(cls, parts: Iterable[Records]) -> Records:
        """The records of several batches, one after the other; batches of which no item could be loaded add only
        their problems."""
        parts = list(parts)
        filled = [part for part in parts if len(part.rows)] or parts[:1]
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in filled]) for name in _ARRAYS},
            maps={name: np.concatenate([part.maps[name] for part in filled]) for name in filled[0].maps},
            problems=[problem for part in parts for problem in part.problems],
        )


_ARRAYS = ("rows", "images", "class_ids", "class_names", "masks", "digests")


class RunFolder:
    """The folder of a run.

    Attributes:
        path: of the folder.
        manifest: everything that the results depend on.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def begin(cls, path: Path, manifest: Mapping[str, Any]) -> RunFolder:
        """Begin a run, or go on with one that was begun with the same manifest.

        Args:
            path: of the folder, which is made if need be.
            manifest: JSON values.

        Raises:
            RunError: the folder holds a run with another manifest, or something else.
        """
        manifest = json.loads(json.dumps(manifest))
        try:
            exists = (path / MANIFEST).exists()
        except OSError as error:
            raise RunError(f"--out cannot be used ({error}); name another folder") from None
        if exists:
            existing = cls.open(path)
            difference = _difference(existing.manifest, manifest)
            if difference:
                raise RunError(
                    f"{path} holds a run with {difference}; go on with the same arguments, data and model, or name "
                    "another folder with --out"
                )
            return existing
        try:
            if path.exists() and (not path.is_dir() or any(path.glob("[!.]*"))):
                raise RunError(f"{path} exists and is no run of this benchmark; name another folder with --out")
            (path / "batches").mkdir(parents=True, exist_ok=True)
            write_atomic(path / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        except OSError as error:
            raise RunError(f"--out cannot be written ({error}); name another folder") from None
        return cls(path, manifest)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that was begun before.

        Raises:
            RunError: there is none.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except FileNotFoundError:
            raise RunError(f"{path} holds no run; a folder written by a benchmark's --out is expected") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{path / MANIFEST} cannot be read ({error}); name another folder") from None
        return cls(path, manifest)

    def _batch(self, number: int) -> Path:
        return self.path / "batches" / f"{number:06d}.npz"

    def has(self, number: int) -> bool:
        """Whether a batch is done."""
        return self._batch(number).exists()

    def write(self, number: int, content: bytes) -> None:
        """Keep the results of a batch (`Records.to_bytes`)."""
        write_atomic(self._batch(number), content)

    def read(self, number: int) -> bytes:
        """The results of a batch that is done."""
        return self._batch(number).read_bytes()

    def records(self) -> Records:
        """The results of all batches.

        Raises:
            RunError: some are not done yet.
        """
        count = self.manifest["num_batches"]
        missing = sum(not self.has(number) for number in range(count))
        if missing:
            raise RunError(
                f"{self.path} lacks {missing} of {count} batches; finish the run by the command that began it"
            )
        return Records.join(Records.from_bytes(self.read(number)) for number in range(count))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """In words, the first entry in which two manifests differ; empty if there is none."""
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = _difference(before, after, f"{prefix}{key} ")
            if inner:
                return inner
        elif before != after:
            return f"{prefix}{key} {json.dumps(before)}, not {json.dumps(after)}"
    return ""
