"""A run on disk: a manifest of its arguments, and one file of results per batch, written once and never changed.

A batch's file appears under its name only when it is complete, so a run that was killed resumes with the
first batch that has none.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

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
            RunError: some are not done yet, or no item could be evaluated.
        """
        count = self.manifest["num_batches"]
        missing = sum(not self.has(number) for number in range(count))
        if missing:
            raise RunError(
                f"{self.path} lacks {missing} of {count} batches; finish the run by the command that began it"
            )
        measures = Measures.of(self)
        if not len(measures):
            raise RunError(f"{self.path} has no results: no item could be evaluated, {len(measures.problems)} problems")
        return measures


class Items(Sequence[Mapping[str, Any]]):
    """The fields of items; they are read batch by batch, so that iterating needs the memory of one batch."""

    def __init__(self, folder: RunFolder, starts: Array, chosen: Array) -> None:
        self._folder, self._starts, self._chosen = folder, starts, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        current, fields = -1, []
        for number, place in _places(self._starts, self._chosen):
            if number != current:
                current, fields = number, self._read(number)
            yield fields[place]

    @overload
    def __getitem__(self, position: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, position: slice) -> Items: ...

    def __getitem__(self, position: int | slice) -> Mapping[str, Any] | Items:
        if isinstance(position, slice):
            return Items(self._folder, self._starts, self._chosen[position])
        ((number, place),) = _places(self._starts, self._chosen[[position]])
        return self._read(number)[place]

    def _read(self, number: int) -> list[Mapping[str, Any]]:
        with np.load(self._folder.path_of(number)) as file:
            items: list[Mapping[str, Any]] = json.loads(str(file["items"]))
        return items


class Measures:
    """The results of a finished run, or of some of its items; all but the problems stays on disk until it is asked for.

    Attributes:
        manifest: of the run.
        items: the fields of each evaluated item, in the order of the data set.
        problems: found on loading.
    """

    def __init__(self, folder: RunFolder, starts: Array, chosen: Array, problems: Sequence[Problem]) -> None:
        self.manifest = folder.manifest
        self.items, self.problems = Items(folder, starts, chosen), problems
        # the number of the first item of each batch, then that of all items; the numbers of our own items
        self._folder, self._starts, self._chosen = folder, starts, chosen

    @classmethod
    def of(cls, folder: RunFolder) -> Measures:
        """All items of a run."""
        counts, problems = [0], []
        for number in range(folder.manifest["num_batches"]):
            with np.load(folder.path_of(number)) as file:
                counts.append(len(file["digests"]))
                problems += [Problem(*fields) for fields in json.loads(str(file["problems"]))]
        starts = np.cumsum(counts)
        return cls(folder, starts, np.arange(starts[-1]), problems)

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def methods(self) -> list[str]:
        """The attribution methods of the run."""
        return list(self.manifest["arguments"]["methods"])

    @property
    def all_methods(self) -> list[str]:
        """The attribution methods of the run, and those of its layer ablation (`eval.layer_ablation`)."""
        ablation = self.manifest.get("layer_ablation")
        return [*self.methods, *(ablation["methods"] if ablation else ())]

    def field(self, name: str) -> Array:
        """A field of all items, `[N]`."""
        return np.array([item[name] for item in self.items])

    def groups(self, name: str) -> tuple[Array, Array]:
        """The items by the value of a field, in a few bytes for each.

        Args:
            name: of the field.

        Returns:
            The group of each item, `[N]`, numbered by first appearance; the position of each group's first item,
            `[groups]`.
        """
        # 64 bits of a hash stand for a value: a million different ones collide with probability 3e-8
        hashes = np.fromiter((_hash(item[name]) for item in self.items), dtype=np.uint64, count=len(self))
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        order = np.argsort(first)
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.arange(len(order))
        return numbers[inverse], first[order]

    def subset(self, chosen: Array) -> Measures:
        """Some of the items, by their positions."""
        return Measures(self._folder, self._starts, self._chosen[chosen], self.problems)

    def digests(self) -> Iterator[bytes]:
        """SHA-256 of each item's files."""
        yield from (digest.tobytes() for digest in self._rows("digests", self._chosen))

    def take(self, name: str, chosen: Array | None = None) -> Array:
        """A measure of some items (all, if None), `[n, ...]`, in their order.

        Args:
            name: of the measure.
            chosen: positions of the items.
        """
        numbers = self._chosen if chosen is None else self._chosen[chosen]
        order = np.argsort(numbers, kind="stable")  # each file is read once
        values: Array = np.empty(0)
        for position, row in zip(order, self._rows(f"measure {name}", numbers[order]), strict=True):
            if not len(values):
                values = np.empty((len(numbers), *row.shape), dtype=row.dtype)
            values[position] = row
        return values

    def stream(self, name: str, size: int = 256) -> Iterator[Array]:
        """A measure of all items, at most `size` at a time, `[n, ...]`."""
        for start in range(0, len(self), size):
            yield self.take(name, np.arange(start, min(start + size, len(self))))

    def _rows(self, key: str, numbers: Array) -> Iterator[Array]:
        """The rows of an array in the batches' files that belong to some items."""
        current, values = -1, np.empty(0)
        for number, place in _places(self._starts, numbers):
            if number != current:
                current = number
                with np.load(self._folder.path_of(number)) as file:
                    values = file[key]
            yield values[place]


def _places(starts: Array, numbers: Array) -> Iterator[tuple[int, int]]:
    """The batch of each item and its place in it."""
    batches = np.searchsorted(starts, numbers, side="right") - 1
    for batch, place in zip(batches, numbers - starts[batches], strict=True):
        yield int(batch), int(place)


def _hash(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest(), "little")


def unpack_masks(packed: Array, side: int) -> Array:
    """Boolean masks `[N, side, side]` that were kept eight pixels to a byte, `[N, bytes]`."""
    bits = np.unpackbits(packed, axis=1, count=side * side)
    return bits.astype(bool).reshape(-1, side, side)
