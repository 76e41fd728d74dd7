"""All image embeddings of a run in one memory-mapped Arrow file, and exact nearest neighbors in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from avgrad.bulk.folder import INDEX, RunFolder
from avgrad.errors import InputError
from avgrad.files import write_atomic
from avgrad.models.devices import cpu_threads

BATCH = 1 << 16  # rows per record batch of the file
BLOCK = 1 << 8  # rows that are converted to float32 at once, so that they stay in a processor's cache
_SHARDS = b"shards"


def build_index(folder: RunFolder) -> Path:
    """The file RUN/embeddings.arrow, written if it is missing or shards have come since.

    It has the columns `row`, int64, and `embedding`, fixed-size list of float16 `[D]`; rows without an embedding are
    left out.

    Raises:
        InputError: the run has no rows yet, or the file cannot be written.
    """
    path, shards = folder.path / INDEX, folder.shards()
    if not shards:
        raise InputError(f"{folder.path} has no rows yet; finish the run by the command that began it")
    names = ",".join(shard.stem for shard in shards).encode()
    if path.exists() and _shards_of(path) == names:
        return path
    width = folder.embeddings().shape[1]
    schema = pa.schema([("row", pa.int64()), ("embedding", pa.list_(pa.float16(), width))], metadata={_SHARDS: names})

    def write(file: IO[bytes]) -> None:
        with pa.ipc.new_file(file, schema) as writer:
            for rows, embeddings in _batches(shards, width):
                values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel(), pa.float16()), width)
                writer.write_batch(pa.record_batch([pa.array(rows), values], schema=schema))

    try:
        return write_atomic(path, write)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


def _shards_of(path: Path) -> bytes | None:
    try:
        with pa.memory_map(str(path)) as file:
            metadata: dict[bytes, bytes] = pa.ipc.open_file(file).schema.metadata or {}
            return metadata.get(_SHARDS)
    except (OSError, pa.ArrowInvalid):
        return None


def _batches(shards: list[Path], width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and embeddings of the shards, `BATCH` at a time or a few more."""
    rows: list[np.ndarray] = []
    embeddings: list[np.ndarray] = []
    for number, shard in enumerate(shards, start=1):
        try:
            table = pq.read_table(shard, columns=["row", "embedding"]).combine_chunks()
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{shard} is damaged ({error})") from None
        table = table.filter(table["embedding"].is_valid())
        rows.append(table["row"].to_numpy())
        embeddings += [chunk.flatten().to_numpy().reshape(-1, width) for chunk in table["embedding"].chunks]
        if sum(map(len, rows)) >= BATCH or number == len(shards):
            yield np.concatenate(rows), np.concatenate([np.zeros((0, width), np.float16), *embeddings])
            rows, embeddings = [], []


def nearest(path: Path, query: Tensor, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose embeddings have the largest dot products with a query; every embedding is compared.

    Args:
        path: of the index.
        query: `[D]`, float32.
        top: how many.

    Returns:
        Their dot products, descending, float32, and their rows, int64; of equal ones the first row first.
    """
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        scores = _scores([_matrix(batch) for batch in batches], query)
        rows = np.concatenate([batch.column(0).to_numpy() for batch in batches])
        if top < len(scores):
            edge = np.partition(scores, -top)[-top]
            kept = np.flatnonzero(scores >= edge)
            scores, rows = scores[kept], rows[kept]
        order = np.lexsort((rows, -scores))[:top]
        return scores[order], rows[order]


def _matrix(batch: pa.RecordBatch) -> Tensor:
    """The embeddings of a record batch, float16 `[n, D]`, where they are mapped."""
    values = batch.column(1)
    return from_dlpack(values.flatten()).view(len(values), values.type.list_size)


def _scores(matrices: list[Tensor], query: Tensor) -> np.ndarray:
    """Dot products of float16 rows with a float32 query, each block by one thread."""
    buffers = threading.local()

    def of_block(block: Tensor) -> np.ndarray:
        if not hasattr(buffers, "block"):
            buffers.block = torch.empty(BLOCK, len(query))
        scores: np.ndarray = (buffers.block[: len(block)].copy_(block) @ query).numpy()
        return scores

    blocks = [block for matrix in matrices for block in matrix.split(BLOCK)]
    threads = torch.get_num_threads()
    with cpu_threads(1), ThreadPoolExecutor(threads) as pool:
        return np.concatenate([np.zeros(0, np.float32), *pool.map(of_block, blocks)])
