"""Rows: a model's plain forward pass, its explanation by a method, or by the original LeGrad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import avgrad
from avgrad.engine.methods import list_methods
from avgrad.prompts import Prompt
from benchmarks import original
from benchmarks.flops import floor
from benchmarks.models import Subject

Kind = Literal["plain", "encode", "method", "further", "original"]

CHOICES: dict[str, dict[str, Any]] = {name: {} for name in list_methods()} | {
    "legrad (bfloat16 backward)": {"backward_dtype": torch.bfloat16}
}
"""Methods that may be timed: name, variant in brackets, and that variant's options of `avgrad.attribute`."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        kind: "plain" is the library's own forward pass, "encode" avgrad's, "method" an attribution method from pixels
            to heatmaps, "further" LeGrad of one more prompt by a Localizer whose image is set, "original" LeGrad by
            legrad_torch.
        size: side of the images in pixels.
        batch: number of images.
        method: of "method" and "further", one of `CHOICES`.
        prompts: how many; 0 for forward passes.
        compiled: through `torch.compile`.
    """

    kind: Kind
    size: int
    batch: int = 1
    method: str = ""
    prompts: int = 0
    compiled: bool = False

    @property
    def label(self) -> str:
        """The row's name among those of the same size and batch."""
        many = f"{self.prompts} prompt{'' if self.prompts == 1 else 's'}"
        names: dict[Kind, str] = {
            "plain": "plain forward",
            "encode": "avgrad encode",
            "method": f"{self.method}, {many}",
            "further": f"{self.method}, a further prompt",
            "original": f"original legrad_torch, {many}",
        }
        return names[self.kind] + (", compiled" if self.compiled else "")

    def floor(self, subject: Subject) -> float | None:
        """The least arithmetic the row needs, in plain forward passes; None where it is not known."""
        if self.kind in ("plain", "encode"):
            return 1.0
        if self.kind == "further":
            return floor(subject.view, self.size, 1, forward_passes=0)
        if self.kind == "original" or self.method.split()[0] == "legrad":
            return floor(subject.view, self.size, self.prompts)
        return None


def rows_of(
    subject: Subject,
    sizes: Sequence[int],
    batches: Sequence[int],
    prompts: Sequence[int],
    methods: Sequence[str],
    original_prompts: int,
    compiled: bool,
) -> list[Row]:
    """The rows of one model.

    Args:
        subject: the model.
        sizes: sides of the images in pixels; empty for the model's own.
        batches: numbers of images.
        prompts: numbers of prompts.
        methods: of `CHOICES`.
        original_prompts: up to how many prompts the original is timed; 0 leaves it out.
        compiled: whether each row of ours, and the plain forward pass, is there compiled as well.
    """
    rows = []
    explained = subject.library == "open_clip" and subject.view.pooler is None and original.is_installed()
    for size in sizes or [subject.size]:
        for batch in batches:
            ours = [Row("plain", size, batch), Row("encode", size, batch)]
            ours += [Row("method", size, batch, method, number) for method in methods for number in prompts]
            rows += ours
            if compiled:
                rows += [Row(row.kind, size, batch, row.method, row.prompts, compiled=True) for row in ours]
            if batch == 1:
                rows += [Row("further", size, 1, method, 1) for method in methods if method.split()[0] == "legrad"]
            if batch == 1 and explained:
                rows += [Row("original", size, prompts=number) for number in prompts if number <= original_prompts]
    return rows


@dataclass(frozen=True)
class Task:
    """A row made ready.

    Attributes:
        run: does it once.
        eager: the same without `torch.compile`.
        keep: brings about what a run finds done already (an image that is set).
    """

    run: Callable[[], object]
    eager: Callable[[], object]
    keep: Callable[[], object] = lambda: None


def task(subject: Subject, row: Row) -> Task:
    """A row made ready on random pixels and prompts, the same each time."""
    view = subject.view
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(row.batch, 3, row.size, row.size, generator=generator).to(view.device, view.dtype)
    prompts = F.normalize(torch.randn(max(1, row.prompts), view.embed_dim, generator=generator), dim=-1)
    if row.kind == "further":
        return _further(subject, row, prompts[0])
    prompts = prompts.to(view.device, view.dtype)
    if row.kind == "original":
        heatmaps = original.original_legrad(subject.twin())
        return _simple(lambda: heatmaps(pixels, prompts), False)
    forward = subject.plain(row.size) if row.kind == "plain" else view.encode

    def run() -> Tensor:
        with torch.no_grad():
            if row.kind == "method":
                return avgrad.attribute(view, pixels, prompts, row.method.split()[0], **CHOICES[row.method])
            return forward(pixels)

    return _simple(run, row.compiled)


def _simple(run: Callable[[], object], compiled: bool) -> Task:
    return Task(torch.compile(run, dynamic=False) if compiled else run, run)


def _further(subject: Subject, row: Row, prompt: Tensor) -> Task:
    from PIL import Image

    localizer = avgrad.Localizer(subject.model, size=row.size, **CHOICES[row.method])
    image = Image.new("RGB", (row.size, row.size), "gray")
    asked = Prompt(prompt, "random", "embedding")

    def run() -> object:
        return localizer.localize(prompts=asked).heatmaps

    return Task(run, run, lambda: localizer.set_image(image))
