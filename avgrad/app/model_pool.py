"""The model pool: the server's models, and the one thread that computes with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from avgrad.models.model import Model
from avgrad.models.registry import load

P = ParamSpec("P")
T = TypeVar("T")

BUNDLED = "mini"


class ModelPool:
    """Models that are loaded once and shared by all sessions, and a worker that runs one computation at a time.

    A model stays loaded as long as a session uses it, and the one asked for last stays for the next session. The
    bundled model, which is small and every session's first, always stays.
    """

    def __init__(self) -> None:
        # one worker: each thread that computes with torch would have its own thread pool and memory
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="avgrad")
        self._models: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._loading, self._keeping = threading.Lock(), threading.Lock()
        self._kept: dict[str, Model] = {}

    def work(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function on the worker's thread, in the order of the calls, and returns its result."""
        return self._worker.submit(function, *args, **kwargs).result()

    def model(self, name: str) -> Model:
        """A model by name; other models are released unless a session uses them.

        Raises:
            UnsupportedModelError, CheckpointError: as `avgrad.load`.
        """
        model = self._models.get(name)
        if model is None:
            with self._loading:  # not on the worker, which goes on for other sessions while weights are downloaded
                model = self._models.get(name)
                if model is None:
                    self._keep()
                    model = self._models[name] = load(name, dtype="auto")
        self._keep(name, model)
        return model

    def _keep(self, name: str = BUNDLED, model: Model | None = None) -> None:
        """Holds a model and the bundled one, and drops the others."""
        with self._keeping:
            self._kept = {kept: other for kept, other in self._kept.items() if kept == BUNDLED}
            if model is not None:
                self._kept[name] = model
