"""Reading a run: as Arrow or pandas, and as `Localization`s."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch

from avgrad.bulk.folder import RunFolder
from avgrad.bulk.item import Item
from avgrad.bulk.schema import SCHEMA
from avgrad.errors import InputError, MediaError
from avgrad.localization import Localization
from avgrad.media import load_image
from avgrad.prompts import Prompt

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image


class Run:
    """The rows of a run, finished or not; `avgrad.read_run` gives it.

    `run[5]` is row 5 as a `Localization`, with the image read from its file; `len(run)` is the number of rows that are
    there. The Parquet files open as they are in DuckDB, Polars or Spark, such as by
    `SELECT id, error FROM 'RUN/shards/*.parquet'`; `avgrad.bulk.schema` documents the columns.

    Attributes:
        folder: of the run.
        manifest: what its rows depend on.
        prompts: looked for in every image.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.manifest, self.prompts = folder, folder.manifest, folder.prompts()

    @property
    def dataset(self) -> ds.Dataset:
        """The rows as a `pyarrow.dataset.Dataset`, which reads what is asked for."""
        return ds.dataset(list(map(str, self.folder.shards())), schema=SCHEMA, format="parquet")

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows in memory, in order.

        Args:
            columns: some of the columns of `avgrad.bulk.schema`; None for all, which are large.

        Raises:
            InputError: there is no such column.
        """
        wrong = [name for name in columns or () if name not in SCHEMA.names]
        if wrong:
            raise InputError(f"there is no column {wrong[0]!r}; expected some of {', '.join(SCHEMA.names)}")
        return self.dataset.to_table(columns=None if columns is None else list(columns))

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows as a pandas data frame; see `table`. It needs pandas."""
        return self.table(columns).to_pandas()

    def errors(self) -> list[tuple[int, str]]:
        """Row and message of each image that could not be read."""
        rows = self.dataset.to_table(columns=["row", "error"], filter=ds.field("error").is_valid())
        return list(zip(rows["row"].to_pylist(), rows["error"].to_pylist(), strict=True))

    def __len__(self) -> int:
        return sum(stop - start for start, stop in map(self.folder.bounds, self.shards()))

    def shards(self) -> list[int]:
        """The numbers of the shards that are there."""
        missing = set(self.folder.missing())
        return [number for number in range(self.folder.num_shards) if number not in missing]

    def __repr__(self) -> str:
        model, images = self.manifest["model"]["name"], self.manifest["images"]
        return f"Run({self.folder.path}: {len(self)} of {images} images, {model}, {self.manifest['method']})"

    # ------------------------------------------------------------------ single rows

    def row(self, number: int) -> dict[str, Any]:
        """The values of a row by column.

        Raises:
            InputError: there is no such row, or it is not there yet.
        """
        if not 0 <= number < self.manifest["images"]:
            raise InputError(f"there is no row {number}; the run has {self.manifest['images']}, from 0")
        shard = number // self.manifest["shard_size"]
        if not self.folder.shard(shard).exists():
            raise InputError(f"row {number} is not there yet; finish the run by the command that began it")
        first, _ = self.folder.bounds(shard)
        return next(self.rows(shard, slice(number - first, number - first + 1)))

    def rows(self, shard: int, which: slice = slice(None)) -> Iterator[dict[str, Any]]:
        """The values of rows of a shard.

        Args:
            shard: its number.
            which: which of its rows.

        Raises:
            InputError: it cannot be read.
        """
        path = self.folder.shard(shard)
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path} is damaged ({error})") from None
        for place in range(len(table))[which]:
            yield from table.slice(place, 1).to_pylist()

    def __getitem__(self, number: int) -> Localization:
        """A row as a `Localization`.

        Its `layer_maps` are the sum alone, `[P, 1, gh, gw]`, and its maps are the model's to float16's precision.

        Raises:
            MediaError: the image could not be read when the run was made, or cannot be now.
            InputError: there is no such row.
        """
        return self.localization(self.row(number))

    def __iter__(self) -> Iterator[Localization]:
        """The rows without an error, in order."""
        for shard in self.shards():
            for row in self.rows(shard):
                if row["error"] is None:
                    yield self.localization(row)

    def image(self, row: Mapping[str, Any]) -> Image.Image:
        """The image of a row, read from its file.

        Raises:
            MediaError: it could not be read when the run was made, or cannot be now, or has another size now.
        """
        if row["error"] is not None:
            raise MediaError(f"row {row['row']}: {row['error']}")
        image = load_image(Item(row["id"], row["path"], row["offset"], row["length"]).open())
        if image.size != (row["width"], row["height"]):
            raise MediaError(f"row {row['row']}: {row['id']} has changed since the run")
        return image

    def localization(self, row: Mapping[str, Any]) -> Localization:
        """The values of a row as a `Localization`; see `run[number]`."""
        image, found, grid = self.image(row), row["prompts"], (row["grid_height"], row["grid_width"])
        if not found:
            raise InputError(f"row {row['row']} has no prompts; the run keeps its embedding alone, for avgrad.find")
        maps = torch.zeros(len(found), *grid)
        for own, one in zip(maps, found, strict=True):
            own.copy_(torch.tensor(one["map"], dtype=torch.float32).view(grid) * one["scale"])
        shared = iter(self.prompts)
        prompts = [
            next(shared)
            if one["embedding"] is None
            else Prompt(torch.tensor(one["embedding"], dtype=torch.float32), one["label"], one["modality"])
            for one in found
        ]
        return Localization(
            image=image,
            prompts=prompts,
            scores=torch.tensor([one["score"] for one in found], dtype=torch.float32),
            maps=maps,
            layer_maps=maps[:, None],
            layers=self.manifest["layers"],
            model=self.manifest["model"]["name"],
            method=self.manifest["method"],
            options=self.manifest["options"],
            normalized_first=self.manifest["normalized_first"],
            name=row["id"],
            device=self.manifest["model"]["device"],
            dtype=self.manifest["model"]["dtype"],
            versions=self.manifest["versions"],
        )


def read_run(folder: str | os.PathLike[str]) -> Run:
    """The run that `avgrad localize SOURCE... --out RUN` or `avgrad.bulk.localize_all` wrote.

    Args:
        folder: of the run.

    Raises:
        InputError: it holds none.
    """
    return Run(RunFolder.open(Path(folder)))
