"""`python -m benchmarks.speed --bulk`, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bulk
from benchmarks.speed import main


def test_rates_and_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"SIZE": (60, 40), "BATCH": 2, "BATCHES": 1, "ROWS": 50_000, "WIDTH": 8}.items():
        monkeypatch.setattr(bulk, name, value)
    arguments = ["--bulk", "--models", "mini", "--rounds", "2", "--json", str(tmp_path / "bulk.json")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 JPEGs of 60 x 40 pixels in batches of 2" in printed
    assert "The 20 nearest of 50,000 embeddings of width 8" in printed
    document = json.loads((tmp_path / "bulk.json").read_text())
    own, whole, ratio = document["rates"]["mini"]
    assert min(own, whole, ratio) > 0
    assert document["find_seconds"] > 0
