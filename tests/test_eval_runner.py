"""Runs that are killed, resumed and split over processes give the same results to the last bit."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_small import CLASSES, small_model, write_data
from PIL import Image

from avgrad import attribute
from eval.__main__ import benchmark
from eval.metrics.prompted_segmentation import prompted_segmentation
from eval.runner import Settings, evaluate
from eval.store import RunError
from eval.task import Inputs
from eval.tasks.ade20k import Ade20kSound, Ade20kSpeech

PROGRAM = Path(__file__).with_name("eval_small.py")
NUM_ITEMS, NUM_BATCHES = 12, 6
FILES = ("results.json", "details.csv", "report.html", "manifest.json")


def command(data: Path, out: Path, ranks: int = 1, seed: int = 0, task: str = "ade20k-speech") -> list[str]:
    program = [str(PROGRAM), str(data), task, str(out), str(seed)]
    if ranks == 1:
        return [sys.executable, *program]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port)]
    return [sys.executable, *launch, *program]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def finish(data: Path, out: Path, ranks: int = 1, task: str = "ade20k-speech") -> str:
    done = subprocess.run(
        command(data, out, ranks, task=task),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def batches(out: Path) -> list[Path]:
    return sorted((out / "batches").glob("[0-9]*.npz"))


def same_bits(data: Path, root: Path, task: str) -> None:
    """Two ranks, and a run that lost a batch and was resumed, give the bits of one process."""
    finish(data, root / "one", task=task)
    finish(data, root / "two", ranks=2, task=task)
    expected = [path.read_bytes() for path in batches(root / "one")]
    assert [path.read_bytes() for path in batches(root / "two")] == expected
    assert (root / "two" / "results.json").read_bytes() == (root / "one" / "results.json").read_bytes()
    batches(root / "two")[1].unlink()
    assert "2 items: " in finish(data, root / "two", task=task)
    assert [path.read_bytes() for path in batches(root / "two")] == expected


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*(out / name for name in FILES), *batches(out)]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), "speech", NUM_ITEMS)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "run"
    with torch.inference_mode():
        benchmark(small_model(), Ade20kSpeech(data), out, Settings(batch_size=2), {"seed": "0"}, workers=1)
    return out


def kill_after(process: subprocess.Popen[bytes], out: Path, count: int, pid: int | None, delay: float) -> None:
    """Kills a process (or another one, for which it stands) a moment after so many batches are there."""
    deadline = time.monotonic() + 120
    while len(batches(out)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(pid or process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(data: Path, reference: Path, tmp_path: Path) -> None:
    out, generator = tmp_path / "run", np.random.default_rng()
    for count in (0, int(generator.integers(1, 3)), int(generator.integers(3, NUM_BATCHES))):
        process = subprocess.Popen(
            command(data, out), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        kill_after(process, out, count, None, generator.uniform(0, 0.05))
        assert process.wait(60) == -signal.SIGKILL
    before = len(batches(out))
    assert before >= 3
    told = finish(data, out)
    assert content(out) == content(reference)
    assert before == NUM_BATCHES or f"{2 * (NUM_BATCHES - before)} items: " in told


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(data: Path, reference: Path, tmp_path: Path) -> None:
    told = finish(data, tmp_path / "run", ranks=2)
    assert content(tmp_path / "run") == content(reference)
    assert told.count("| small, legrad ") == 4  # one process alone reports
    assert f"{NUM_ITEMS // 2} items: " in told


@pytest.mark.slow
def test_a_killed_rank_and_the_run_resumed(data: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(data, out, ranks=2), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "run.pid1").exists():
        time.sleep(0.01)
    kill_after(process, out, 1, int((tmp_path / "run.pid1").read_text()), 0.0)
    assert process.wait(120) != 0
    assert not (out / "results.json").exists()
    finish(data, out, ranks=2)
    assert content(out) == content(reference)


@pytest.mark.slow
def test_hosts_without_a_common_file_system(data: Path, reference: Path, tmp_path: Path) -> None:
    finish(data, tmp_path / "run RANK", ranks=2)
    assert content(tmp_path / "run 0") == content(reference)
    assert len(batches(tmp_path / "run 1")) == NUM_BATCHES // 2


def test_the_same_command_again_computes_nothing(data: Path, reference: Path, capsys: pytest.CaptureFixture) -> None:
    before = content(reference)
    times = [path.stat().st_mtime_ns for path in batches(reference)]
    benchmark(small_model(), Ade20kSpeech(data), reference, Settings(batch_size=2), {"seed": "0"}, workers=1)
    assert content(reference) == before
    assert [path.stat().st_mtime_ns for path in batches(reference)] == times
    assert "s in the model" not in capsys.readouterr().out


def test_other_arguments_data_or_model_are_refused(data: Path, reference: Path, tmp_path: Path) -> None:
    model, dataset, settings = small_model(), Ade20kSpeech(data), Settings(batch_size=2)
    for changed, message in (
        ((small_model(1), dataset, settings, {"seed": "0"}), "holds a run with model fingerprint"),
        ((model, Ade20kSpeech(data, limit=4), settings, {"seed": "0"}), "holds a run with data fingerprint"),
        ((model, dataset, Settings(batch_size=3), {"seed": "0"}), "with arguments batch_size 2, not 3; go on"),
        ((model, dataset, Settings(("legrad",), batch_size=2), {"seed": "0"}), r"not \[\"legrad\"\]; go on"),
        ((model, dataset, Settings(batch_size=2, layers=-1), {"seed": "0"}), "arguments layers null, not -1"),
        ((model, dataset, settings, {"seed": "1"}), 'arguments seed "0", not "1"'),
    ):
        with pytest.raises(RunError, match=message):
            evaluate(changed[0], changed[1], reference, changed[2], changed[3])  # type: ignore[arg-type]
    (tmp_path / "something.txt").write_text("mine")
    with pytest.raises(RunError, match="is no run of this benchmark"):
        evaluate(model, dataset, tmp_path, settings, {})


def test_the_figures_are_those_of_the_library(data: Path, reference: Path) -> None:
    """The whole way again by the public face, image by image, with LeGrad's own normalization."""
    model, dataset = small_model(), Ade20kSpeech(data)
    samples = [dataset.load(item, Inputs.of(model)) for item in dataset.items]
    classes = [item.class_id for item in dataset.items]
    masks = torch.from_numpy(np.stack([sample.truth["mask"] for sample in samples]))
    results = json.loads((reference / "results.json").read_text())["results"]
    assert len(results) == 3 * 2 * 2
    for line in results:
        if line["normalization"] == "image":
            place = ("basic", "advanced").index(line["timing"])
            maps = [
                attribute(model.vision, s.pixels[None], model.encode_audio([s.prompts[place]]), line["method"])[0, 0]
                for s in samples
            ]
            score = prompted_segmentation(torch.stack(maps), masks, classes)
            assert line["mean_average_precision"] == pytest.approx(score.mean_average_precision, abs=1e-4)
            assert line["mean_iou"] == pytest.approx(score.mean_iou, abs=1e-4)


def test_what_comes_out(data: Path, reference: Path) -> None:
    results = json.loads((reference / "results.json").read_text())
    assert results["arguments"]["methods"] == ["legrad", "cosine", "raw_attention"]
    assert results["data"]["evaluated_items"] == results["data"]["rows"] == NUM_ITEMS
    assert {"python", "torch", "numpy"} <= set(results["versions"])
    assert len(results["model"]["fingerprint"]) == len(results["data"]["content_fingerprint"]) == 64
    with open(reference / "details.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["results"]) * len(CLASSES)
    first = results["results"][0]["details"][0]
    assert float(rows[0]["average_precision"]) == first["average_precision"] and rows[0]["class_name"] == "dog"
    for line in results["results"]:
        classes = line["details"]
        assert line["mean_iou"] == pytest.approx(np.mean([c["iou"] for c in classes]), abs=1e-12)
    page = (reference / "report.html").read_text()
    assert "as published: Bousselham" in page and "48.7" in page
    assert page.count("data:image/jpeg;base64,") == 1 + len(CLASSES) * 5
    assert "http" not in page and "<script" not in page  # it needs nothing from elsewhere
    timing = json.loads((reference / "timing.json").read_text())
    assert timing["ratio"] == pytest.approx(timing["whole_seconds"] / timing["model_seconds"])


def test_a_class_without_pixels_is_reported(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", "sound", 3)
    Image.new("RGB", (80, 60)).save(root / "annotations" / "scene 1_seg.png")
    benchmark(small_model(), Ade20kSound(root), tmp_path / "run", Settings(("cosine",)), {}, workers=1)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["problems"]["counts"] == {"class without pixels": 1, "no pixels": 1}
    assert {problem["row"] for problem in results["problems"]["rows"]} == {2}
    figures = {c["class_name"]: c["average_precision"] for c in results["results"][0]["details"]}
    assert figures["cat"] is None
    line, found = results["results"][0], figures["dog"] + figures["bell"]
    assert line["mean_average_precision"] == pytest.approx(found / 2, abs=1e-12)
    assert line["mean_average_precision_as_published"] == pytest.approx(found / 3, abs=1e-12)
    assert line["mean_iou_as_published"] == pytest.approx(2 * line["mean_iou"] / 3, abs=1e-12)
