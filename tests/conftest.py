"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from golden.files import Golden
from torch.overrides import TorchFunctionMode

from benchmarks.loading import save_random_checkpoint
from tests.browser import NO_BROWSER


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the processors
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The golden values: `golden(name)` is a file's path; `golden/README.md` says what there is."""
    return Golden(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="session")
def original() -> ModuleType:
    """The module of the original `imagebind` package that defines its model."""
    spec = importlib.util.find_spec("imagebind")
    assert spec is not None, "the original is not installed: pip install --no-deps imagebind-packaged"
    # the package's __init__, which is left out, imports media loaders whose dependencies install hardly anywhere
    sys.modules["imagebind"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("imagebind.models.imagebind_model")


class _NumbersOnCpu(TorchFunctionMode):
    """Keeps `torch.linspace`, whose numbers the original reads while it is built, on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs = {"device": "cpu", **kwargs}
        return func(*args, **kwargs)


@pytest.fixture(scope="session")
def huge_checkpoint(original: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `.pth` file of imagebind_huge's true layout and size, all six towers of it, with random numbers."""
    with torch.device("meta"), _NumbersOnCpu():
        shapes = {key: value.shape for key, value in original.imagebind_huge().state_dict().items()}
    path = tmp_path_factory.mktemp("huge") / "imagebind_huge.pth"
    save_random_checkpoint(path, shapes)
    yield path
    path.unlink()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says in one line how to get a browser if the tests of the page were skipped."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_BROWSER in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests skipped: {NO_BROWSER}")
