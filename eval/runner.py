"""Runs a benchmark: batches, workers that load them, resuming, and many processes.

Which items make up a batch depends on the data set and the batch size alone, and each batch is computed by one process
and kept in one file. So the results do not depend on how many processes there were, nor on how often they were killed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avgrad.encoders.image import Preprocess
from avgrad.engine.methods import Pooling
from avgrad.engine.view import ViTView
from eval.dataset import DataError, DataSet, Item, Problem, Sample
from eval.methods import attribute_all
from eval.store import Records, RunFolder

PACKAGES = ("avgrad", "torch", "torchaudio", "numpy", "pillow", "soundfile", "av")


class SoundModel(Protocol):
    """What the benchmark needs of a model of `avgrad.load`."""

    name: str
    preprocess: Preprocess

    @property
    def vision(self) -> ViTView: ...

    def encode_clips(self, clips: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Settings:
    """How a model is evaluated; kept with the results, whose last bits depend on all of it.

    Attributes:
        methods: names in `avgrad.list_methods()`.
        layers: as in `avgrad.attribute`.
        pooling: as in `avgrad.attribute`.
        batch_size: items per batch.
        threads: CPU threads per process; the order of sums depends on it.
    """

    methods: tuple[str, ...] = ("legrad", "cosine", "raw_attention")
    layers: int | tuple[int, ...] | None = None
    pooling: Pooling = "mean"
    batch_size: int = 16
    threads: int = 1


@dataclass
class Timing:
    """The time of one process.

    Attributes:
        items: number of items it evaluated.
        model_seconds: in the model and the methods.
        seconds: total, without loading the model.
    """

    items: int = 0
    model_seconds: float = 0.0
    seconds: float = 0.0


# ------------------------------------------------------------------ processes


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes, from torchrun's environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group() -> Iterator[None]:
    """Connects the processes that torchrun started; does nothing for a single one."""
    if rank_and_world()[1] > 1:
        # only small messages are exchanged, and a process may wait for as long as another one computes
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    yield  # no try: after an error the others may never finish, and waiting for them would hide it
    if dist.is_initialized():
        dist.destroy_process_group()


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


# ------------------------------------------------------------------ the manifest


def model_fingerprint(model: SoundModel) -> str:
    """SHA-256 over the model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # not every package is needed for every file format
            continue
    return versions


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def make_manifest(
    model: SoundModel, data: DataSet, settings: Settings, arguments: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Everything that the results depend on."""
    return {
        "benchmark": data.name,
        "arguments": {**arguments, **vars(settings)},
        "model": {
            "name": model.name,
            "fingerprint": model_fingerprint(model),
            "dtype": str(model.vision.dtype),
        },
        "data": {
            "fingerprint": data.fingerprint,
            "rows": data.num_rows,
            "items": len(data.items),
            "problems": [[problem.row, problem.kind, problem.message] for problem in data.problems],
            "timings": list(data.timings),
            "side": data.side,
        },
        "num_batches": -(-len(data.items) // settings.batch_size),
        "versions": _versions(),
        "device": _device_name(device),
    }


# ------------------------------------------------------------------ computing


@dataclass(frozen=True)
class _Batch:
    number: int
    items: list[Item]
    samples: list[Sample]
    problems: list[Problem]


class _Batches(Dataset[_Batch]):
    """The batches with the given numbers, loaded; runs in the data loader's workers."""

    def __init__(self, data: DataSet, preprocess: Preprocess, batch_size: int, numbers: Sequence[int]) -> None:
        self.data, self.preprocess, self.batch_size, self.numbers = data, preprocess, batch_size, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> _Batch:
        number = self.numbers[index]
        items, samples, problems = [], [], []
        for item in self.data.items[number * self.batch_size : (number + 1) * self.batch_size]:
            try:
                sample = self.data.load(item, self.preprocess)
            except DataError as error:
                problems.append(Problem(item.row, "unreadable file", str(error)))
                continue
            if not sample.mask.any():  # it counts, as in the original: a heatmap can be wrong about it
                message = (
                    f"{item.image} shows no {item.class_name} (class {item.class_id}) in the part that is evaluated"
                )
                problems.append(Problem(item.row, "no pixels", message))
            items.append(item)
            samples.append(sample)
        return _Batch(number, items, samples, problems)


def _compute(model: SoundModel, view: ViTView, settings: Settings, batch: _Batch) -> dict[str, np.ndarray]:
    """Raw maps by each method, float32 `[B, P, gh, gw]`."""
    if not batch.samples:
        return {}
    pixels = torch.stack([sample.pixels for sample in batch.samples]).to(view.device)
    prompts = torch.stack([torch.stack([model.encode_clips(c) for c in sample.clips]) for sample in batch.samples])
    maps = attribute_all(view, pixels, prompts, settings.methods, settings.layers, settings.pooling)
    return {name: values.cpu().numpy() for name, values in maps.items()}


def _records(batch: _Batch, maps: dict[str, np.ndarray]) -> Records:
    masks = [np.packbits(sample.mask.numpy()) for sample in batch.samples]
    return Records(
        rows=np.array([item.row for item in batch.items], dtype=np.int64),
        images=np.array([item.image for item in batch.items], dtype=np.str_),
        class_ids=np.array([item.class_id for item in batch.items], dtype=np.int64),
        class_names=np.array([item.class_name for item in batch.items], dtype=np.str_),
        masks=np.array(masks, dtype=np.uint8),
        digests=np.array([np.frombuffer(sample.digest, dtype=np.uint8) for sample in batch.samples], dtype=np.uint8),
        maps=maps,
        problems=batch.problems,
    )


def evaluate(
    model: SoundModel,
    data: DataSet,
    out: Path,
    settings: Settings,
    arguments: dict[str, Any],
    workers: int = 2,
    strict: bool = False,
    notice: Callable[[str], None] = print,
) -> tuple[RunFolder, Timing]:
    """Compute and store the heatmaps of a data set, or of what is left of it.

    With torchrun every process calls this; the first one ends up with all results in its folder, even without a common
    file system.

    Args:
        model: moved to its device.
        data: the benchmark's data.
        out: the run's folder.
        settings: how to evaluate.
        arguments: of the command line, kept in the manifest.
        workers: processes that load data, 1 or more.
        strict: stop at the first problem with the data.
        notice: called with each problem.

    Returns:
        The folder, and the time of this process.

    Raises:
        RunError: the folder holds another run.
        DataError: with `strict`, the first problem.
        ValueError: the settings do not suit the model.
    """
    began = time.perf_counter()
    timing = Timing()
    rank, world = rank_and_world()
    view = model.vision
    if rank == 0:
        for problem in data.problems:
            notice(str(problem))
    if strict and data.problems:
        raise DataError(f"{data.problems[0]}; --strict accepts none")
    manifest = make_manifest(model, data, settings, arguments, view.device)
    for current in range(world):  # one after the other: they may share the folder
        if current == rank:
            folder = RunFolder.begin(out, manifest)
        _barrier()

    numbers = range(rank, manifest["num_batches"], world)
    todo = [number for number in numbers if not folder.has(number)]
    batches = _Batches(data, model.preprocess, settings.batch_size, todo)
    loader = DataLoader(batches, batch_size=None, num_workers=min(workers, len(todo)), collate_fn=_as_it_is)
    bar = _progress(rank, world, len(data.items), settings.batch_size, numbers, todo)
    with cpu_threads(settings.threads), bar as progress:
        for batch in loader:
            if strict and batch.problems:
                raise DataError(f"{batch.problems[0]}; --strict accepts none")
            for problem in batch.problems:
                notice(str(problem))
            started = time.perf_counter()
            maps = _compute(model, view, settings, batch)
            timing.model_seconds += time.perf_counter() - started
            timing.items += len(batch.samples)
            folder.write(batch.number, _records(batch, maps).to_bytes())
            if progress is not None:
                progress.update(len(batch.items) + sum(p.kind == "unreadable file" for p in batch.problems))
    _collect(folder, manifest["num_batches"], rank, world)
    timing.seconds = time.perf_counter() - began
    return folder, timing


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Sets the number of PyTorch's CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_it_is(batch: Any) -> Any:
    return batch


def _progress(
    rank: int, world: int, num_items: int, batch_size: int, numbers: Sequence[int], todo: Sequence[int]
) -> AbstractContextManager[Any]:
    """A progress bar over the first process's share."""
    if rank:
        return nullcontext()
    from tqdm import tqdm

    def count(batches: Sequence[int]) -> int:
        return sum(min(batch_size, num_items - number * batch_size) for number in batches)

    total = count(numbers)
    label = "items" if world == 1 else f"items (process 1 of {world})"
    bar: AbstractContextManager[Any] = tqdm(total=total, initial=total - count(todo), desc=label, unit="item")
    return bar


def _collect(folder: RunFolder, num_batches: int, rank: int, world: int) -> None:
    """Sends the batches that the first process cannot see to it, one at a time."""
    if world == 1:
        return
    dist.barrier()
    missing = [[number for number in range(num_batches) if not folder.has(number)] if rank == 0 else []]
    dist.broadcast_object_list(missing, src=0)
    for number in missing[0]:
        owner = number % world
        if rank == owner:
            dist.send_object_list([folder.read(number)], dst=0)
        elif rank == 0:
            received: list[Any] = [None]
            dist.recv_object_list(received, src=owner)
            folder.write(number, received[0])
