"""Tasks: a benchmark is one class in one file of `eval/tasks`, registered by its name with `@task`."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avgrad.encoders.image import Preprocess
from avgrad.errors import InputError, MediaError, UnsupportedModelError
from avgrad.models.model import AudioPreprocess
from eval.encoder import Encoder, Prompt

if TYPE_CHECKING:
    from eval.store import Measures

Array = np.ndarray[Any, np.dtype[Any]]
ProblemKind = Literal[
    "missing file", "unreadable row", "duplicate row", "unreadable file", "no pixels", "class without pixels"
]
NUM_EXAMPLES = 8  # in a report
Modality = Literal["audio", "text"]
Class = TypeVar("Class", bound="type[Task]")
# (weights of images [R, n], 0 for those left out) -> each figure [R]
Resampler = Callable[[Array], Mapping[str, Array]]


class DataError(InputError):
    """Data that cannot be evaluated; the message says what is wrong and what is accepted."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with one row of the data set.

    Attributes:
        row: number of the row, 1 for the first one after the header.
        kind: of problem.
        message: which file or field, and what is wrong with it.
    """

    row: int
    kind: ProblemKind
    message: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.kind}: {self.message}"


@dataclass(frozen=True)
class Item:
    """An item of a benchmark as far as it is known before loading; tasks add fields of JSON types.

    Attributes:
        row: number of its row, 1 for the first one after the header.
        image: the image's name within the data set; items of one image are resampled together.
    """

    row: int
    image: str


@dataclass(frozen=True)
class Inputs:
    """How a model takes images and sounds.

    Attributes:
        image: its preprocessing of images.
        audio: its preprocessing of sounds; None for models that take none.
    """

    image: Preprocess
    audio: AudioPreprocess | None = None

    @classmethod
    def of(cls, model: Any) -> Inputs:
        """Those of a model as `avgrad.load` gives it."""
        return cls(model.preprocess, getattr(model, "audio_preprocess", None))

    @property
    def sound(self) -> AudioPreprocess:
        """The preprocessing of sounds.

        Raises:
            UnsupportedModelError: the model takes none.
        """
        if self.audio is None:
            raise UnsupportedModelError("this benchmark's prompts are sounds; a model that takes them is needed")
        return self.audio


@dataclass(frozen=True)
class Case:
    """An item, loaded.

    Attributes:
        pixels: preprocessed for the model, float32 `[3, h, w]`.
        prompts: each a text, a class of the task, or a sound as the model takes it (`Inputs.sound`).
        truth: what the task measures against.
        digest: SHA-256 of the files it was loaded from.
        problems: found on loading that do not keep it from being evaluated: kind and message.
        others: more preprocessed images for `Task.probe`, float32 `[n, 3, h, w]`.
    """

    pixels: Tensor
    prompts: Sequence[Prompt]
    truth: Mapping[str, Array]
    digest: bytes
    problems: Sequence[tuple[ProblemKind, str]] = ()
    others: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Row:
    """A row of a benchmark's table.

    Attributes:
        method: attribution method.
        variant: the other choices, by name, such as {"timing": "basic"}.
        figures: by name, in [0, 1]; NaN where unknown.
        details: the figures of each class or the like, for `details.csv`.
        curve: points of a curve for the report, `[2, n]`.
    """

    method: str
    variant: Mapping[str, str]
    figures: Mapping[str, float]
    details: Sequence[Mapping[str, Any]] = ()
    curve: Array | None = None


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        name: of the method, as the paper calls it.
        figures: by name, in percent.
        source: the paper.
        trained_with_masks: whether the method was trained on masks.
    """

    name: str
    figures: Mapping[str, float]
    source: str
    trained_with_masks: bool = False


@dataclass(frozen=True)
class Example:
    """An item in the report.

    Attributes:
        title: caption of the image.
        image: as it was evaluated.
        truth: mask to show over it, bool `[side, side]`.
        heatmaps: by caption, min-max normalized `[side, side]`.
    """

    title: str
    image: Image.Image
    truth: Array
    heatmaps: Mapping[str, Array] = field(default_factory=dict)


class Task(ABC):
    """A benchmark over one data set.

    A subclass has a constructor `(root: Path, limit: int | None, **options)` that raises `DataError` if the data cannot
    be used, and the attributes below; those that are class attributes and class methods are used without the data as
    well.

    Attributes:
        name: on the command line; set by `@task`.
        measures: what it measures, a phrase.
        source: where the data are available, and their licence.
        layout: the files expected under `--data`.
        modalities: of the prompts, "audio" or "text"; the model must take all of them.
        needs_data: whether the benchmark reads data from a folder; others make their own.
        options: of the constructor, beside the folder and the limit, with their defaults: texts and numbers.
        default_methods: methods by default; none for a benchmark that explains in its own way.
        chosen: the values of the options, which are kept with the results.
        class_names: the classes of `ClassPrompt`.
        columns: figures in the table: heading by name.
        published: rows of papers.
        ranked: whether the report lists the best and the worst of the first row's details.
        curve_axes: labels of the axes of `Row.curve`.
        side: height and width in pixels of masks and heatmaps.
        items: what can be evaluated, as far as is known before loading.
        problems: found before loading.
        num_rows: number of rows that the benchmark's definition selects, with or without problems.
        fingerprint: changes whenever the list of items or the size of a file changes.
    """

    name: ClassVar[str]
    measures: ClassVar[str]
    source: ClassVar[str]
    layout: ClassVar[str]
    modalities: tuple[Modality, ...]
    needs_data: ClassVar[bool] = True
    options: ClassVar[Mapping[str, str | int]] = {}
    default_methods: ClassVar[tuple[str, ...]] = ("legrad", "cosine", "raw_attention")
    columns: ClassVar[Mapping[str, str]]
    published: ClassVar[Sequence[Published]] = ()
    ranked: ClassVar[bool] = True
    curve_axes: ClassVar[tuple[str, str]] = ("", "")
    side: ClassVar[int] = 224
    chosen: Mapping[str, str | int] = {}
    class_names: Sequence[str] = ()
    items: Sequence[Item]
    problems: Sequence[Problem]
    num_rows: int
    fingerprint: str

    @abstractmethod
    def __init__(self, root: Path, limit: int | None = None) -> None: ...

    @abstractmethod
    def load(self, item: Any, inputs: Inputs) -> Case:
        """Load an item; runs in a worker process.

        Raises:
            DataError: one of its files cannot be read.
        """

    def probe(self, case: Case, maps: Mapping[str, Array], embeddings: Tensor, encoder: Encoder) -> Mapping[str, Array]:
        """Measures that need the model again, as those of `measure`; by default none. Runs in the model's loop.

        Args:
            case: the item.
            maps: by method raw maps on the patch grid, float32 `[P, gh, gw]`.
            embeddings: of the prompts, `[P, D]`.
            encoder: the model.
        """
        return {}

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """What to keep of an item: small arrays, of the same shapes for all items of a task; by default nothing.

        Runs in a process of its own, beside the model.

        Args:
            case: the item, without pixels and prompts.
            maps: by method raw maps on the patch grid, float32 `[P, gh, gw]`.
        """
        return {}

    @classmethod
    @abstractmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """The table, the method's first row first. Reads measures a few at a time, so that memory stays bounded."""

    @classmethod
    @abstractmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """The figures of a row where images count with given weights, for the bootstrap of `eval.compare`."""

    @classmethod
    def methods_of(cls, measures: Measures) -> list[str]:
        """The attribution methods that have rows of their own; by default those of the run."""
        return measures.methods

    @classmethod
    def problems_of(cls, measures: Measures) -> list[Problem]:
        """Problems that show in all measures together."""
        return []

    @classmethod
    def curves(cls, rows: Sequence[Row]) -> Mapping[str, Mapping[str, Array]]:
        """Curves for the report, `[2, n]`, by label and panel: those of the rows, a panel for each last variant."""
        panels: dict[str, dict[str, Array]] = {}
        for row in rows:
            if row.curve is not None:
                name, value = list(row.variant.items())[-1]
                others = [choice for key, choice in row.variant.items() if key != name]
                panels.setdefault(f"{name}: {value}", {})[", ".join([row.method, *others])] = row.curve
        return panels

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """A few items for the report, from the best to the worst of a row."""
        yield from ()


def spread(scores: Array) -> list[int]:
    """Positions of a few items, evenly spread from the highest score to the lowest; equal ones in their order.

    >>> spread(np.array([0.1, 0.9, 0.5]))
    [1, 2, 0]
    """
    order = np.argsort(-scores, kind="stable")
    places = np.linspace(0, len(order) - 1, min(NUM_EXAMPLES, len(order))).round().astype(int)
    return [int(position) for position in order[np.unique(places)]]


def image_or_blank(load: Callable[[], Image.Image], side: int) -> Image.Image:
    """An image for the report; a white one if it cannot be read, since the data may have been removed."""
    try:
        return load()
    except MediaError:
        return Image.new("RGB", (side, side), "white")


TASKS: dict[str, type[Task]] = {}


def task(name: str) -> Callable[[Class], Class]:
    """Registers a class as a task."""

    def register(cls: Class) -> Class:
        cls.name = name
        TASKS[name] = cls
        return cls

    return register


def list_tasks() -> list[str]:
    """The names of all tasks."""
    import eval.tasks

    for module in pkgutil.iter_modules(eval.tasks.__path__):
        import_module(f"eval.tasks.{module.name}")
    return sorted(TASKS)


def get_task(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        InputError: there is none.
    """
    if name not in list_tasks():
        raise InputError(f"there is no benchmark {name!r}; expected one of {', '.join(sorted(TASKS))}")
    return TASKS[name]
