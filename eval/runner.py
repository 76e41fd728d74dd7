"""Runs a task: batches, workers that load them, a process that scores them, resuming, and many processes.

Which items make up a batch depends on the task and the batch size alone, and each batch is computed by one process
and kept in one file. So the results do not depend on how many processes there were, nor on how often they were killed.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from avgrad.engine.methods import Pooling, resolve_layers
from avgrad.models.devices import cpu_threads
from avgrad.models.fingerprint import model_fingerprint
from avgrad.models.model import Model
from eval.encoder import Encoder
from eval.layer_ablation import ablated_methods
from eval.methods import attribute_all
from eval.scorer import Job, Scorer, exit_with_parent, slim
from eval.store import RunFolder
from eval.task import Array, Case, DataError, Inputs, Item, Problem, Task

PACKAGES = ("avgrad", "torch", "torchaudio", "numpy", "pillow", "soundfile", "av")


@dataclass(frozen=True)
class Settings:
    """How a model is evaluated; kept with the results, whose last bits depend on all of it.

    Attributes:
        methods: as `eval.methods.parse_method` takes them.
        layers: as in `avgrad.attribute`.
        pooling: as in `avgrad.attribute`.
        batch_size: items per batch.
        threads: CPU threads per process; the order of sums depends on it.
        layer_ablation: whether to measure legrad from each further layer on as well.
    """

    methods: tuple[str, ...] = ("legrad", "cosine", "raw_attention")
    layers: int | tuple[int, ...] | None = None
    pooling: Pooling = "mean"
    batch_size: int = 16
    threads: int = 1
    layer_ablation: bool = False


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
    model: Model, task: Task, settings: Settings, arguments: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Everything that the results depend on."""
    ablation = {}
    if settings.layer_ablation:
        layers = resolve_layers(settings.layers, len(model.vision.blocks))
        ablation = {"layer_ablation": {"first_layer": layers[0], "methods": ablated_methods(layers)}}
    return {
        "benchmark": task.name,
        "arguments": {**arguments, **vars(settings)},
        **({"options": dict(task.chosen)} if task.chosen else {}),
        **ablation,
        "model": {
            "name": model.name,
            "fingerprint": model_fingerprint(model),
            "dtype": str(model.vision.dtype),
        },
        "data": {
            "fingerprint": task.fingerprint,
            "rows": task.num_rows,
            "items": len(task.items),
            "problems": [[problem.row, problem.kind, problem.message] for problem in task.problems],
        },
        "num_batches": -(-len(task.items) // settings.batch_size),
        "versions": _versions(),
        "device": _device_name(device),
    }


# ------------------------------------------------------------------ computing


@dataclass(frozen=True)
class _Loaded:
    number: int
    items: list[Item]
    cases: list[Case]
    problems: list[Problem]


class _Batches(Dataset[_Loaded]):
    """The batches with the given numbers, loaded; runs in the data loader's workers."""

    def __init__(self, task: Task, inputs: Inputs, batch_size: int, numbers: Sequence[int]) -> None:
        self.task, self.inputs, self.batch_size, self.numbers = task, inputs, batch_size, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> _Loaded:
        batch = _Loaded(self.numbers[index], [], [], [])
        start = batch.number * self.batch_size
        for item in self.task.items[start : start + self.batch_size]:
            try:
                case = self.task.load(item, self.inputs)
            except DataError as error:
                batch.problems.append(Problem(item.row, "unreadable file", str(error)))
                continue
            batch.problems.extend(Problem(item.row, *problem) for problem in case.problems)
            batch.items.append(item)
            batch.cases.append(case)
        return batch


def _compute(
    task: Task, encode: Encoder, settings: Settings, batch: _Loaded
) -> tuple[list[dict[str, Array]], list[Mapping[str, Array]]]:
    """For each item raw maps by each method, float32 `[P, gh, gw]`, and what the task asks the model besides."""
    if not batch.cases:
        return [], []
    view = encode.model.vision
    pixels = torch.stack([case.pixels for case in batch.cases]).to(view.device)
    embeddings = encode.batch([case.prompts for case in batch.cases], pixels)
    counts = [len(own) for own in embeddings]
    # items with fewer prompts than others repeat their last one, whose maps are dropped
    padded = [torch.cat([own, own[-1:].expand(max(counts) - len(own), -1)]) for own in embeddings]
    chosen = settings.methods, settings.layers, settings.pooling, settings.layer_ablation
    maps = attribute_all(view, pixels, torch.stack(padded), *chosen)
    arrays = {name: values.cpu().numpy() for name, values in maps.items()}
    found = [{name: a[index, :count] for name, a in arrays.items()} for index, count in enumerate(counts)]
    cases = zip(batch.cases, found, embeddings, strict=True)
    return found, [task.probe(case, own, embedded, encode) for case, own, embedded in cases]


def evaluate(
    model: Model,
    task: Task,
    out: Path,
    settings: Settings,
    arguments: dict[str, Any],
    workers: int = 2,
    strict: bool = False,
    notice: Callable[[str], None] = print,
) -> tuple[RunFolder, Timing]:
    """Compute and store the measures of a benchmark, or of what is left of it.

    With torchrun every process calls this; the first one ends up with all results in its folder, even without a common
    file system.

    Args:
        model: moved to its device.
        task: the benchmark.
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
    if rank == 0:
        for problem in task.problems:
            notice(str(problem))
    if strict and task.problems:
        raise DataError(f"{task.problems[0]}; --strict accepts none")
    manifest = make_manifest(model, task, settings, arguments, model.vision.device)
    for current in range(world):  # one after the other: they may share the folder
        if current == rank:
            folder = RunFolder.begin(out, manifest)
        _barrier()

    numbers = range(rank, manifest["num_batches"], world)
    todo = [number for number in numbers if not folder.has(number)]
    if todo:
        bar = _progress(rank, world, len(task.items), settings.batch_size, numbers, todo)
        batches = _Batches(task, Inputs.of(model), settings.batch_size, todo)
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=min(workers, len(todo)),
            collate_fn=_as_it_is,
            worker_init_fn=exit_with_parent,
        )
        encode = Encoder(model, task.class_names)
        with cpu_threads(settings.threads), bar as progress:
            with Scorer(task, folder) as scorer:
                for batch in loader:
                    if strict and batch.problems:
                        raise DataError(f"{batch.problems[0]}; --strict accepts none")
                    for problem in batch.problems:
                        notice(str(problem))
                    started = time.perf_counter()
                    maps, probed = _compute(task, encode, settings, batch)
                    timing.model_seconds += time.perf_counter() - started
                    timing.items += len(batch.cases)
                    cases = [slim(case) for case in batch.cases]
                    scorer.put(Job(batch.number, batch.items, cases, maps, probed, batch.problems))
                    if progress is not None:
                        progress.update(scorer.take_rows())
            if progress is not None:
                progress.update(scorer.take_rows())
    _collect(folder, manifest["num_batches"], rank, world)
    timing.seconds = time.perf_counter() - began
    return folder, timing


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
