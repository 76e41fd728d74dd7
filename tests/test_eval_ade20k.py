"""The benchmark's command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from eval_small import write_data
from typer.testing import CliRunner

from avgrad.engine.methods import list_methods
from eval.__main__ import app
from eval.task import list_tasks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), "sound", 5)


def test_every_method_is_listed() -> None:
    told = CliRunner().invoke(app, ["ade20k-sound", "--help"], env={"COLUMNS": "1000"})
    assert told.exit_code == 0
    assert "|".join(list_methods()) in told.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "nowhere"], 1, "nowhere holds no prompted_segmentation.csv"),
        (["--model", "nonsense"], 1, "there is no model 'nonsense'"),
        (["--checkpoint", "nowhere.pth"], 1, "there is no checkpoint nowhere.pth"),
        (["--layers", "some"], 2, "layers 'some' is neither 'all', a number nor a list"),
        (["--layers", "40"], 2, "layers=40 is out of range"),
        (["--data", "x" * 300], 1, "File name too long"),
        (["--out", "x" * 300], 1, "File name too long"),
        (["--method", "guessing"], 2, f"unknown method 'guessing'; expected one of {', '.join(list_methods())}"),
        (["--method", "legrad:colour=red"], 2, "colour"),
    ],
)
def test_wrong_arguments_are_named(data: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    every = ["ade20k-sound", "--data", str(data), "--out", str(tmp_path / "run"), *arguments]
    told = CliRunner().invoke(app, every, env={"COLUMNS": "1000"})
    assert (told.exit_code, message in told.output) == (code, True), told.output
    assert not (tmp_path / "run").exists()


def test_benchmarks_are_listed() -> None:
    told = CliRunner().invoke(app, ["list"])
    assert told.exit_code == 0
    for name in list_tasks():
        assert f"{name}\n  measures  " in told.output
    assert "prompted_segmentation.csv" in told.output


def test_the_bundled_model_from_the_command_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--data", data, "--out", out, "--method", "legrad", "--layers", "-2", "--limit", "4", "--workers", "1",
                 "--strict", "--latex"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "eval", "ade20k-sound", *map(str, arguments)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| mini, legrad" in done.stdout and r"\begin{tabular}" in done.stdout
    assert "4 of 4 rows evaluated" in done.stdout
    results = json.loads((out / "results.json").read_text())
    assert results["arguments"]["layers"] == -2
    assert results["model"]["name"] == "mini" and len(results["results"]) == 2
