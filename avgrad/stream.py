"""Many images: decoded ahead, located in batches, given back in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from avgrad.errors import MediaError
from avgrad.localization import Localization
from avgrad.media import load_image, source_name
from avgrad.prompts import Prompt

if TYPE_CHECKING:
    from PIL import Image

    from avgrad.localizer import Localizer


T = TypeVar("T")
R = TypeVar("R")

WINDOW = 4  # batches of images that may wait for others of their shape


@dataclass(eq=False)
class _Item:
    """One image on its way.

    Attributes:
        image, name, pixels: decoded and preprocessed; `pixels` is `[3, h, w]`.
        seconds: what that took.
        error: why it could not be read.
        result: what was found, in the end.
    """

    image: Image.Image | None = None
    name: str = ""
    pixels: Tensor | None = None
    seconds: float = 0.0
    error: Exception | None = None
    result: Localization | None = None

    @property
    def shape(self) -> torch.Size:
        assert self.pixels is not None
        return self.pixels.shape


def stream(
    localizer: Localizer, images: Iterable[Any], prompts: list[Prompt], batch_size: int, workers: int
) -> Iterator[Localization]:
    """What `Localizer.stream` gives for checked prompts.

    Images wait for others of their shape until there are `batch_size` of them, or `WINDOW` times as many wait in all.
    """
    waiting: deque[_Item] = deque()  # not given back yet, in order
    groups: dict[torch.Size, list[_Item]] = {}  # of those, by shape: not located yet

    def locate(shape: torch.Size) -> None:
        start, items = time.perf_counter(), groups.pop(shape)
        pixels = torch.stack([item.pixels for item in items if item.pixels is not None])
        loaded = [item.image for item in items if item.image is not None]
        prepared = localizer.settings.prepare(pixels, localizer.keep)
        results = localizer.results(prepared, loaded, [item.name for item in items], [prompts], localizer.settings)
        seconds = (time.perf_counter() - start) / len(items)
        for item, result in zip(items, results, strict=True):
            item.result = replace(result, seconds={"image": item.seconds, "heatmaps": seconds})

    def located() -> Iterator[Localization]:
        while waiting and (waiting[0].result is not None or waiting[0].error is not None):
            item = waiting.popleft()
            if item.error is not None:
                raise item.error
            assert item.result is not None
            yield item.result

    for item in _decoded(localizer, images, batch_size + workers, workers):
        waiting.append(item)
        if item.error is not None:
            break  # those before it are located and given back first
        groups.setdefault(item.shape, []).append(item)
        if len(groups[item.shape]) == batch_size:
            locate(item.shape)
        yield from located()
        if len(waiting) >= WINDOW * batch_size:
            locate(waiting[0].shape)
            yield from located()
    while waiting:
        if waiting[0].error is None:
            locate(waiting[0].shape)
        yield from located()


def _decoded(localizer: Localizer, images: Iterable[Any], ahead: int, workers: int) -> Iterator[_Item]:
    """The images in order, decoded by threads, so many of them ahead."""

    def numbered() -> Iterator[tuple[int, Any] | _Item]:
        try:
            yield from enumerate(images)
        except Exception as error:  # of the iterable itself: those that it gave before are located first
            yield _Item(error=error)

    def decode(numbered: tuple[int, Any] | _Item) -> _Item:
        if isinstance(numbered, _Item):
            return numbered
        start, (index, source) = time.perf_counter(), numbered
        try:
            image = load_image(source)
            pixels = localizer.model.preprocess.whole(image, localizer.size)
        except MediaError as error:
            named = MediaError(f"images[{index}]: {error}")
            named.__cause__ = error
            return _Item(error=named)
        except Exception as error:
            return _Item(error=error)
        return _Item(image, source_name(source), pixels, time.perf_counter() - start)

    return computed_ahead(decode, numbered(), ahead, workers)


def computed_ahead(
    function: Callable[[T], R], values: Iterable[T], ahead: int, workers: int
) -> Generator[R, None, None]:
    """A function of each value, in order, computed by threads.

    Args:
        function: called in the threads.
        values: read as far ahead as results are computed.
        ahead: how many results may wait.
        workers: number of threads.
    """
    futures: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="avgrad-decode")
    try:
        for value in values:
            futures.append(pool.submit(function, value))
            if len(futures) > ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
