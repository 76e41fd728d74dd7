"""The model pool: the server's models, and the one thread that computes with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import streamlit as st

from avgrad.models.model import Model
from avgrad.models.registry import load

P = ParamSpec("P")
T = TypeVar("T")

BUNDLED = "mini"


class ModelPool:
    """Models that are loaded once and shared by all visitors, and one worker that does one computation at a time.

    A model stays as long as a visitor uses it, and the last one asked for stays for the next visitor. The bundled one,
    which is small and greets everybody, always stays.
    """

    def __init__(self) -> None:
        # one thread for all: each thread that computes with torch would have its own pool of threads and its own memory
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="avgrad")
        self._models: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._loading, self._keeping = threading.Lock(), threading.Lock()
        self._kept: dict[str, Model] = {}

    def work(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function on the worker's thread, after what was asked for before, and waits for its result."""
        return self._worker.submit(function, *args, **kwargs).result()

    def model(self, name: str) -> Model:
        """A model by name; the others are forgotten unless a visitor holds them.

        Raises:
            UnsupportedModelError, CheckpointError: as `avgrad.load`.
        """
        model = self._models.get(name)
        if model is None:
            with self._loading:  # not the worker, which goes on for the others while weights are fetched
                model = self._models.get(name)
                if model is None:
                    self._keep()
                    model = self._models[name] = load(name)
        self._keep(name, model)
        return model

    def _keep(self, name: str = BUNDLED, model: Model | None = None) -> None:
        """Holds a model and the bundled one, and lets go of the others."""
        with self._keeping:
            self._kept = {kept: other for kept, other in self._kept.items() if kept == BUNDLED}
            if model is not None:
                self._kept[name] = model


@st.cache_resource(show_spinner=False)
def the_model_pool() -> ModelPool:
    """The server's only model pool."""
    return ModelPool()
