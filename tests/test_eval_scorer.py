"""Scoring beside the model: real processes that fail, are interrupted or killed, and runs that resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_small import small_model, write_data
from test_eval_runner import batches, command, environment

from avgrad.scenes import write_dataset
from eval import scorer
from eval.runner import Settings, evaluate
from eval.store import RunFolder
from eval.task import Case, DataError
from eval.tasks.ade20k import Ade20kSound


class Failing(Ade20kSound):
    """Fails at the item with this row."""

    name = "failing"
    row = 3
    error: Exception | None = None

    def measure(self, case: Case, maps: Mapping[str, Any]) -> Mapping[str, Any]:
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == self.row:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise self.error
        assert not case.prompts and not case.pixels.numel()  # what only the model needs stays there
        return super().measure(case, maps)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), "sound", 8)


def test_an_error_in_scoring_reaches_the_caller(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = Failing(data)
    task.error = DataError("row 3 cannot be scored")
    with pytest.raises(DataError, match="row 3 cannot be scored"):
        evaluate(small_model(), task, tmp_path / "run", Settings(batch_size=2), {}, 1)
    assert "in measure" in capfd.readouterr().err  # its traceback
    assert len(batches(tmp_path / "run")) == 1
    task.error, task.row = None, 0
    folder, timing = evaluate(small_model(), task, tmp_path / "run", Settings(batch_size=2), {}, 1)
    assert (len(folder.measures()), timing.items) == (8, 6)


def test_a_killed_scoring_process_is_reported(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the scoring process ended with exit code -9; the same command resumes"):
        evaluate(small_model(), Failing(data), tmp_path / "run", Settings(batch_size=2), {}, 1)
    assert len(batches(tmp_path / "run")) == 1


def test_an_error_of_the_model_ends_the_scoring_process(data: Path, tmp_path: Path) -> None:
    folder = RunFolder.begin(tmp_path / "run", {})
    with pytest.raises(ZeroDivisionError), scorer.Scorer(Ade20kSound(data), folder) as running:
        raise ZeroDivisionError
    assert not running._process.is_alive()


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """A program with a process group of its own."""
    return subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while len(batches(out)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_the_end_of(group: int) -> None:
    """Waits until no process of a group is left."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a process was left behind")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(number: signal.Signals, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "speech", 40)
    process = start(command(data, tmp_path / "run"))
    wait_for(tmp_path / "run", 1, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.kill()
    assert process.wait(30) != 0
    wait_for_the_end_of(process.pid)
    assert len(batches(tmp_path / "run")) < 20
    assert not (tmp_path / "run" / "results.json").exists()


TASKS = {"funnybirds": "funnybirds", "avsbench-ms3": "avsbench-ms3", "vggss-negatives": "vggss"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_killed_resumed_and_split_runs_have_the_same_bits(name: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", TASKS[name], 4, size=64, progress=False)

    def arguments(out: str, ranks: int = 1) -> list[str]:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        options = ["--data", str(data), "--out", str(tmp_path / out), "--batch-size", "1", "--limit", "4"]
        return [sys.executable, *(launch if ranks > 1 else []), "-m", "eval", name, *options, "--workers", "1"]

    def finish(out: str, ranks: int = 1) -> dict[str, bytes]:
        done = subprocess.run(
            arguments(out, ranks), env=environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        files = [tmp_path / out / "results.json", *batches(tmp_path / out)]
        assert len(files) == 5
        return {path.name: path.read_bytes() for path in files}

    expected = finish("one")
    generator = np.random.default_rng()
    for count in (1, 2):
        process = start(arguments("killed"))
        wait_for(tmp_path / "killed", count, process)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        process.wait(30)
        wait_for_the_end_of(process.pid)
    assert len(batches(tmp_path / "killed")) >= 2
    assert finish("killed") == expected
    assert finish("two", ranks=2) == expected
