"""Startup times: each stage is reported. No test looks at the times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed import main

pytestmark = pytest.mark.slow


def test_startup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "startup.json"
    assert main(["--startup", "--rounds", "1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert list(figures["localize"]) == [
        "start Python",
        "import torch",
        "import avgrad",
        "load the model",
        "decode the image",
        "encode the prompt",
        "forward pass and heatmap",
        "overlay, write and print",
        "end Python",
    ]
    assert all(value > 0 for stages in ("imports", "localize") for value in figures[stages].values())
    assert {"torch", "avgrad", "numpy"} <= set(figures["packages"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures["localize"])
