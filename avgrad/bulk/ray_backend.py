"""The same shards on a Ray cluster: read -> map (decode) -> map_batches (model actor) -> write, by Ray Data.

Ray places, scales and retries everything. A row of its data set is a shard, from one end to the other, so the written
rows are those of the local backend: neither the number of machines nor lost ones change them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from avgrad.bulk.folder import RunFolder
from avgrad.bulk.item import Item
from avgrad.bulk.shard import Decoder, Explainer
from avgrad.errors import InputError
from avgrad.models.devices import cpu_threads

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise InputError(f"ray needs a package that is not installed ({error.name}); pip install 'avgrad[ray]'") from None


class _Decode:
    """Decodes the images of a shard."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        items: list[Item] = pickle.loads(row["items"])
        return {**row, "decoded": pickle.dumps([self.decoder(item) for item in items])}


class _Locate:
    """An actor with a model: the rows of a shard, as an Arrow file."""

    def __init__(self, explainer: ray.ObjectRef, device: str, threads: int) -> None:
        self.explainer: Explainer = ray.get(explainer)  # one copy per machine, however many actors it has
        self.threads = threads
        model: Any = self.explainer.model
        module = model if isinstance(model, torch.nn.Module) else model.model  # other libraries' models are wrapped
        module.to(device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        shards, errors = [], []
        with cpu_threads(self.threads):
            for first, items, decoded in zip(batch["first"], batch["items"], batch["decoded"], strict=True):
                sink, error = pa.BufferOutputStream(), ""
                try:
                    rows = self.explainer.table(int(first), pickle.loads(items), pickle.loads(decoded))
                    with pa.ipc.new_file(sink, rows.schema) as writer:
                        writer.write_table(rows)
                except InputError as found:  # Ray would lose its type
                    error = str(found)
                shards.append(sink.getvalue().to_pybytes())
                errors.append(error)
        return {"shard": batch["shard"], "rows": shards, "error": errors}


class _Sink(ray.data.Datasink[None]):
    """Writes shards to the run's folder, each complete or not at all; writing one again does no harm."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        for block in blocks:
            row: dict[str, Any]
            for row in ray.data.block.BlockAccessor.for_block(block).iter_rows(public_row_format=True):
                if row["error"]:
                    raise InputError(row["error"])
                self.folder.write(int(row["shard"]), pa.ipc.open_file(row["rows"]).read_all())


def run_on_ray(
    explainer: Explainer, folder: RunFolder, items: Sequence[Item], address: str, device: str, progress: bool
) -> None:
    """Computes the shards that are missing on a cluster.

    Args:
        explainer: with its model, which is sent to the actors.
        folder: reachable under the same path from every node.
        items: the collection; its files, too.
        address: "local" for a cluster on this machine, or that of one; a connection that is open is used as it is.
        device: where the actors compute; each reserves a GPU if it is "cuda".
        progress: show Ray's progress bars.

    Raises:
        InputError: there is no such cluster, or the model cannot be used so.
    """
    missing = folder.missing()
    if not missing:
        return
    opened = not ray.is_initialized()
    if opened:
        _connect(address)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = progress
        threads = folder.manifest["threads"]
        rows: list[dict[str, Any]] = []
        for number in missing:
            start, stop = folder.bounds(number)
            rows.append({"shard": number, "first": start, "items": pickle.dumps(items[start:stop])})
        dataset = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            # half a processor each, for they wait for disks, too; with the actors' resources Ray would fuse both stages
            .map(_Decode(explainer.decoder).__call__, num_cpus=0.5)
            .map_batches(
                _Locate,
                fn_constructor_args=(ray.put(explainer), device, threads),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=1),
                # one processor is left for decoding where a machine has no more than a model uses
                num_cpus=max(1, threads - 1),
                num_gpus=1 if torch.device(device).type == "cuda" else 0,
            )
        )
        dataset.write_datasink(_Sink(folder))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause).partition("\n")[0]) from None  # Ray adds lines of its own
        raise
    finally:
        if opened:
            ray.shutdown()


def _connect(address: str) -> None:
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"ray={address!r}: there is no such cluster ({error}); 'local' or an address is expected"
        ) from None
