"""One shard of a collection: decoded images in, a table of rows out.

A shard is a fixed run of consecutive images. Which of them share a forward pass depends on the shard alone, so its rows
have the same bits whichever process computes it, and whatever happened before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from avgrad.bulk.item import Item
from avgrad.bulk.schema import Row, prompt_values, table
from avgrad.encoders.image import Preprocess
from avgrad.engine.attribute import explain, normalizes_first
from avgrad.errors import MediaError, PromptError
from avgrad.localizer import Localizer
from avgrad.media import load_image
from avgrad.models.model import Model
from avgrad.prompts import Prompt
from avgrad.settings import Settings


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        size: its width and height; None where it cannot be read.
        samples: uint8 `[h, w, 3]`, at the size that the network sees.
        error: why it cannot be read; empty where it can.
    """

    size: tuple[int, int] | None = None
    samples: np.ndarray | None = None
    error: str = ""


@dataclass(frozen=True)
class Decoder:
    """Decodes items. It can be pickled, and needs no model.

    Attributes:
        preprocess: the model's.
        size: the short side in pixels at which the network sees images; None for the model's own.
    """

    preprocess: Preprocess
    size: int | None

    def __call__(self, item: Item) -> Decoded:
        try:
            image = load_image(item.open())
        except MediaError as error:
            return Decoded(error=str(error))
        return Decoded(image.size, np.asarray(self.preprocess.resized(image, self.size)))


@dataclass(frozen=True, eq=False)
class Explainer:
    """Locates prompts in the images of shards. It can be pickled with its model.

    Attributes:
        settings: with the model.
        size: the short side in pixels at which the network sees images; None for the model's own.
        prompts: looked for in every image.
        templates: for the texts of items' own prompts.
        batch_size: the largest number of images in a forward pass.
    """

    settings: Settings
    size: int | None
    prompts: list[Prompt]
    templates: str | Sequence[str]
    batch_size: int

    @property
    def model(self) -> Model:
        return self.settings.model

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.model.preprocess, self.size)

    def table(
        self,
        first: int,
        items: Sequence[Item],
        decoded: Iterable[Decoded],
        progress: Callable[[int], object] = lambda count: None,
    ) -> pa.Table:
        """The rows of a shard.

        Args:
            first: place of its first item in the collection.
            items: its items.
            decoded: of each item; read as it goes.
            progress: called with the number of images that are done since.

        Raises:
            InputError: the model cannot be used so. An image or a prompt of an item that cannot be read is an error in
                its row.
        """
        own = self._encode(items)
        rows: list[Row] = [Row()] * len(items)
        groups: dict[tuple[tuple[int, ...], int], list[tuple[int, Decoded]]] = {}
        for place, image in enumerate(decoded):
            errors = [image.error] if image.error else []
            errors += [found for key in items[place].prompts if isinstance(found := own[key], str)]
            if errors or image.samples is None:
                rows[place] = Row(size=image.size, error="; ".join(errors))
                progress(1)
                continue
            key = image.samples.shape, len(items[place].prompts)
            groups.setdefault(key, []).append((place, image))
            if len(groups[key]) == self.batch_size:
                self._locate(groups.pop(key), items, own, rows)
                progress(self.batch_size)
        for group in groups.values():
            self._locate(group, items, own, rows)
            progress(len(group))
        return table(first, items, rows)

    def _encode(self, items: Sequence[Item]) -> Mapping[tuple[str, str], Prompt | str]:
        """The items' own prompts by modality and value, or why one cannot be used."""
        localizer = Localizer(self.model)
        found: dict[tuple[str, str], Prompt | str] = {}
        for modality, value in dict.fromkeys(prompt for item in items for prompt in item.prompts):
            sources = {modality: value}
            try:
                found[modality, value] = localizer.encode(**sources, templates=self.templates)[0]  # type: ignore[arg-type]
            except (MediaError, PromptError) as error:
                found[modality, value] = f"{modality}: {error}"
        return found

    def _locate(
        self,
        group: Sequence[tuple[int, Decoded]],
        items: Sequence[Item],
        own: Mapping[tuple[str, str], Prompt | str],
        rows: list[Row],
    ) -> None:
        """Fills in the rows of images of one shape, and with equally many prompts."""
        normalize = self.model.preprocess.normalize
        pixels = torch.stack([normalize(image.samples) for _, image in group if image.samples is not None])
        prompts = [
            [*self.prompts, *(prompt for key in items[place].prompts if isinstance(prompt := own[key], Prompt))]
            for place, _ in group
        ]
        grid, embeddings, scores, maps = self._explained(pixels, prompts)
        first = normalizes_first(self.model.vision)
        for index, (place, image) in enumerate(group):
            assert image.size is not None
            count = len(items[place].prompts)
            rows[place] = Row(
                size=image.size,
                embedding=embeddings[index].half().numpy(),
                grid=grid,
                prompts=prompt_values(prompts[index], count, scores[index], maps[index], image.size, first)
                if prompts[index]
                else [],
            )

    def _explained(
        self, pixels: Tensor, prompts: Sequence[Sequence[Prompt]]
    ) -> tuple[tuple[int, int], Tensor, Tensor, Tensor]:
        """The patch grid, embeddings `[B, D]`, scores `[B, P]` and raw maps `[B, P, gh, gw]`, float32 on the CPU."""
        view = self.model.vision
        grid = view.grid(pixels)
        if not prompts[0]:
            embedding = view.encode(pixels).float().cpu()
            return grid, embedding, embedding.new_zeros(len(pixels), 0), embedding.new_zeros(len(pixels), 0, *grid)
        directions = torch.stack([torch.stack([prompt.direction for prompt in own]) for own in prompts])
        directions = directions.to(view.device, view.dtype)
        prepared = self.settings.prepare(pixels, keep=False)
        found = explain(prepared, directions, grid, normalize=False, correction=self.settings.correction)
        scores = torch.einsum("bd,bpd->bp", found.embedding.float(), directions.float())
        return grid, found.embedding.float().cpu(), scores.cpu(), found.heatmaps.float().cpu()
