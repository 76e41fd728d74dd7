"""A run on disk: a manifest of its arguments, and one file of results per batch, written once and never changed.

A batch's file appears under its name only when it is complete, so a run that was killed resumes with the
first batch that has none.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avgrad.errors import InputError
from avgrad.files import difference, write_atomic
from eval.task import Problem

Array = np.ndarray[Any, np.dtype[Any]]

MANIFEST = "manifest.json"


class RunError(InputError):
    """A run that cannot be resumed or read; the message says why."""


@dataclass(frozen=True)
class Batch:
    """What is kept of the items of one batch.

    Attributes:
        items: the fields of each evaluated item.
        digests: SHA-256 of each item's files, `[N, 32]`.
        measures: what the task measured, by name, `[N, ...]`.
        problems: of all items of the batch, evaluated or not.
    """

    items: Sequence[Mapping[str, Any]]
    digests: Array
    measures: Mapping[str, Array]
    problems: Sequence[Problem]

    def to_bytes(self) -> bytes:
        """The content of the batch's file."""
        problems = [[problem.row, problem.kind, problem.message] for problem in self.problems]
        arrays: dict[str, Any] = {f"measure {name}": values for name, values in self.measures.items()}
        stream = io.BytesIO()
        np.savez(
            stream, items=json.dumps(list(self.items)), problems=json.dumps(problems), digests=self.digests, **arrays
        )  # type: ignore[arg-type]
        return stream.getvalue()


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
            changed = difference(existing.manifest, manifest)
            if changed:
                raise RunError(
                    f"{path} holds a run with {changed}; go on with the same arguments, data and model, or name "
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

    def path_of(self, number: int) -> Path:
        """The file of a batch."""
        return self.path / "batches" / f"{number:06d}.npz"

    def has(self, number: int) -> bool:
        """Whether a batch is done."""
        return self.path_of(number).exists()

    def write(self, number: int, content: bytes) -> None:
        """Keep the results of a batch (`Batch.to_bytes`)."""
        write_atomic(self.path_of(number), content)

    def read(self, number: int) -> bytes:
        """The results of a batch that is done."""
        return self.path_of(number).read_bytes()

    def measures(self) -> Measures:
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
        return Measures.of(self)


class Measures:
    """The results of a finished run, or of some of its items; arrays stay on disk until they are asked for.

    Attributes:
        manifest: of the run.
        items: the fields of each evaluated item, in the order of the data set.
        digests: SHA-256 of each item's files, `[N, 32]`.
        problems: found on loading.
    """

    def __init__(
        self,
        folder: RunFolder,
        items: Sequence[Mapping[str, Any]],
        digests: Array,
        problems: Sequence[Problem],
        places: Array,
    ) -> None:
        self.manifest = folder.manifest
        self.items, self.digests, self.problems = items, digests, problems
        self._folder, self._places = folder, places  # places: batch and place in it, [N, 2]

    @classmethod
    def of(cls, folder: RunFolder) -> Measures:
        """All items of a run."""
        items: list[Mapping[str, Any]] = []
        digests, places, problems = [np.zeros((0, 32), dtype=np.uint8)], [], []
        for number in range(folder.manifest["num_batches"]):
            with np.load(folder.path_of(number)) as file:
                own = json.loads(str(file["items"]))
                items += own
                places += [(number, place) for place in range(len(own))]
                if own:
                    digests.append(file["digests"])
                problems += [Problem(*fields) for fields in json.loads(str(file["problems"]))]
        return cls(folder, items, np.concatenate(digests), problems, np.array(places, dtype=np.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def methods(self) -> list[str]:
        """The attribution methods of the run."""
        return list(self.manifest["arguments"]["methods"])

    def field(self, name: str) -> Array:
        """A field of all items, `[N]`."""
        return np.array([item[name] for item in self.items])

    def subset(self, chosen: Array) -> Measures:
        """Some of the items, by their positions."""
        items = [self.items[int(position)] for position in chosen]
        return Measures(self._folder, items, self.digests[chosen], self.problems, self._places[chosen])

    def take(self, name: str, chosen: Array | None = None) -> Array:
        """A measure of some items (all, if None), `[n, ...]`, in their order.

        Args:
            name: of the measure.
            chosen: positions of the items.
        """
        places = self._places if chosen is None else self._places[chosen]
        parts: list[Array] = [np.empty(0)] * len(places)
        for number in np.unique(places[:, 0]):
            with np.load(self._folder.path_of(int(number))) as file:
                values = file[f"measure {name}"]
            for position in np.flatnonzero(places[:, 0] == number):
                parts[position] = values[places[position, 1]]
        return np.stack(parts)

    def stream(self, name: str, size: int = 1024) -> Iterator[Array]:
        """A measure of all items, at most `size` at a time, `[n, ...]`."""
        for start in range(0, len(self), size):
            yield self.take(name, np.arange(start, min(start + size, len(self))))


def unpack_masks(packed: Array, side: int) -> Array:
    """Boolean masks `[N, side, side]` that were kept eight pixels to a byte, `[N, bytes]`."""
    bits = np.unpackbits(packed, axis=1, count=side * side)
    return bits.astype(bool).reshape(-1, side, side)
