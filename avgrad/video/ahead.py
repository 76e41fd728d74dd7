"""Work ahead: an iterator that a thread of its own reads, through a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL = 0.1  # seconds after which a thread that waits looks whether it is to stop


class Ahead(Generic[T]):
    """Iterates over what another iterator gives, read by a thread so many items ahead.

    `close` ends the thread, also while it waits; the iterator that it reads is closed in it. That iterator's errors are
    raised at their place.

    Args:
        source: what to read.
        size: of the queue, 1 or more.
        name: of the thread.
    """

    def __init__(self, source: Iterator[T], size: int, name: str) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(size)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name=name, daemon=True)
        self._thread.start()

    def _put(self, item: T | None, error: BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put((item, error), timeout=_POLL)
                return
            except queue.Full:
                continue

    def _run(self, source: Iterator[T]) -> None:
        end: BaseException = StopIteration()
        try:
            for item in source:
                self._put(item, None)
                if self._stop.is_set():
                    break
        except BaseException as error:
            end = error
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
        self._put(None, end)

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    def close(self) -> None:
        """Ends the thread, and waits for it."""
        self._stop.set()
        self._thread.join()
