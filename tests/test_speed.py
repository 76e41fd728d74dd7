"""`python -m benchmarks.speed`, on small models: every option, its figures and its errors. No test looks at times."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from avgrad.models.timm import TimmModel
from benchmarks import original
from benchmarks.models import build
from benchmarks.rows import Row, task
from benchmarks.speed import main
from benchmarks.timing import time_in_rounds

MODEL = "open_clip:ViT-S-32-alt"
CPU = torch.device("cpu")
QUICK = ["--models", MODEL, "--size", "64", "--rounds", "2", "--original", "0", "--no-memory"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "speed.json"
    assert main([*QUICK, "--json", str(path), *arguments]) == 0
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".png"] == ["speed.json"]
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def labels(document: dict[str, Any]) -> list[str]:
    return [row["label"] for row in document["rows"]]


def test_figures_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(tmp_path, "--prompts", "3,1", "--methods", "legrad,cosine", "--threads", "1")
    assert labels(document) == [
        "plain forward",
        "avgrad encode",
        "legrad, 1 prompt",
        "legrad, 3 prompts",
        "cosine, 1 prompt",
        "cosine, 3 prompts",
        "legrad, a further prompt",
    ]
    assert document["threads"] == 1 and document["device"] == "cpu" and document["rounds"] == 2
    assert document["versions"]["torch"] == torch.__version__
    plain, own, *_ = document["rows"]
    for row in document["rows"]:
        assert len(row["seconds"]) == 2 and row["tokens"] == 5
        assert row["median_seconds"] == pytest.approx(sum(row["seconds"]) / 2)
        assert row["images_per_second"] == pytest.approx(1 / row["median_seconds"])
        for key, reference in (("forwards", plain), ("own_forwards", own)):
            ratios = [a / b for a, b in zip(row["seconds"], reference["seconds"], strict=True)]
            assert row[key] == pytest.approx(sum(ratios) / 2)
        assert row["flops_in_forwards"] == pytest.approx(row["flops"] / plain["flops"])
        if row["floor"] is not None:  # what runs is what the closed form says
            assert row["over_floor"] == pytest.approx(row["own_forwards"] / row["floor"])
            assert row["flops_in_forwards"] == pytest.approx(row["floor"], rel=0.01)
    assert {row["label"] for row in document["rows"] if row["floor"] is None} == {
        "cosine, 1 prompt",
        "cosine, 3 prompts",
    }
    printed = capsys.readouterr().out
    assert all(label in printed for label in labels(document))
    assert "plain forward (open_clip)" in printed and "images/s" in printed and "peak MB" not in printed


@pytest.mark.slow
def test_dtypes(tmp_path: Path) -> None:
    document = run(tmp_path, "--models", "mini", "--dtype", "float32,bfloat16", "--prompts", "1")
    assert [row["dtype"] for row in document["rows"]] == ["float32"] * 4 + ["bfloat16"] * 4


@pytest.mark.slow
def test_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(tmp_path, "--models", "mini", "--batch", "1,3", "--prompts", "2")
    rows = {(row["label"], row["batch"]): row for row in document["rows"]}
    one, three = (rows["legrad, 2 prompts", batch] for batch in (1, 3))
    assert three["images_per_second"] == pytest.approx(3 / three["median_seconds"])
    assert three["over_batch_1"] == pytest.approx(three["median_seconds"] / 3 / one["median_seconds"])
    assert three["flops"] == 3 * one["flops"]
    assert ("legrad, a further prompt", 3) not in rows
    assert "per image / batch of 1" in capsys.readouterr().out


@pytest.mark.slow
def test_sizes_and_plot(tmp_path: Path) -> None:
    document = run(
        tmp_path, "--models", "mini", "--size", "64,96", "--prompts", "1", "--plot", str(tmp_path / "growth.png")
    )
    assert {row["tokens"] for row in document["rows"]} == {65, 145}
    with open(tmp_path / "growth.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"


@pytest.mark.parametrize("model", ["mini", "timm:vit_tiny_patch16_224"])
def test_other_models(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run(tmp_path, "--models", model, "--original", "1", "--prompts", "1")
    assert {row["model"] for row in document["rows"]} == {model}
    assert not any("original" in label for label in labels(document))
    assert len(document["notes"]) == 1 and document["notes"][0] in capsys.readouterr().out


@pytest.mark.slow
def test_bfloat16_backward(tmp_path: Path) -> None:
    document = run(tmp_path, "--prompts", "1", "--methods", "legrad,legrad (bfloat16 backward)")
    exact, low = (row for row in document["rows"] if row["kind"] == "method")
    assert low["label"] == "legrad (bfloat16 backward), 1 prompt"
    assert "legrad (bfloat16 backward), a further prompt" in labels(document)
    assert low["floor"] == exact["floor"] and low["flops"] == pytest.approx(exact["flops"], rel=0.01)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert main([*QUICK, "--compile"]) == 2
    assert capsys.readouterr().err == "--compile needs a C++ compiler; neither g++ nor clang++ was found\n"


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    document = run(tmp_path, "--prompts", "1", "--compile")
    for label in ("plain forward", "avgrad encode", "legrad, 1 prompt"):
        assert label in labels(document) and f"{label}, compiled" in labels(document)


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    document = run(tmp_path, "--models", "mini", "--prompts", "1", "--memory", "--size", "224")
    plain = document["rows"][0]
    for row in document["rows"]:
        assert 0 <= row["peak_memory_code_bytes"] < row["peak_memory_bytes"] < 200e6
        assert row["memory_over_plain"] == pytest.approx(row["peak_memory_bytes"] / plain["peak_memory_bytes"])


@pytest.mark.slow
def test_original(tmp_path: Path) -> None:
    """The original is timed where it is, up to the number of prompts that was said, and does what we do."""
    document = run(tmp_path, "--prompts", "1,2,3", "--original", "2", "--batch", "1,2")
    found = [(row["label"], row["batch"]) for row in document["rows"] if row["kind"] == "original"]
    assert found == [("original legrad_torch, 1 prompt", 1), ("original legrad_torch, 2 prompts", 1)]
    assert document["versions"]["legrad_torch"]
    subject = build(MODEL, CPU, torch.float32)
    ours = task(subject, Row("method", 224, method="legrad", prompts=2)).run()
    theirs = task(subject, Row("original", 224, prompts=2)).run()
    assert isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)
    torch.testing.assert_close(F.relu(theirs).view_as(ours), ours, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_without_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "legrad", None)
    assert not original.is_installed()
    document = run(tmp_path, "--prompts", "1", "--original", "1")
    assert not any("original" in label for label in labels(document))
    assert document["notes"] == ["the original is left out: legrad_torch is not installed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "resnet50"], "there is no model 'resnet50'; there are mini, imagebind_huge, pe-av-small,"),
        (["--models", "open_clip:ViT-B-17"], "open_clip has no model 'ViT-B-17'; one such as ViT-B-16 is expected"),
        (["--models", "open_clip:RN50"], "cannot be explained"),
        (["--models", "timm:resnet50"], "timm:resnet50 cannot be explained"),
        (["--methods", "legrad,grad"], "--methods grad is unknown; expected some of legrad, "),
        (["--device", "cuda:99"], "--device cuda:99 is not available on this machine; cpu is"),
        (["--device", "meta"], "--device meta computes nothing"),
        (["--device", "privateuseone"], "--device privateuseone is not available on this machine"),
        (["--device", "abacus"], "--device abacus is not available on this machine"),
        (["--dtype", "float33"], "--dtype float33 is unknown; expected one of float32, tf32, bfloat16, float16"),
        (["--dtype", "tf32"], "--dtype tf32 needs an NVIDIA GPU, and --device is cpu"),
        (["--size", "100"], "--size 100 is not a multiple of 32, the patch size of open_clip:ViT-S-32-alt"),
        (["--batch", "1;8"], "--batch '1;8' is not a list of positive integers such as 1,10"),
        (["--prompts", ""], "--prompts '' is not a list of positive integers"),
        (["--plot", "growth.png"], "--plot needs at least two image sizes"),
        (["--rounds", "0"], "Invalid value for '--rounds'"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, *arguments]) == 2
    told = capsys.readouterr()
    assert not told.out and message in told.err
    assert len(told.err.strip().splitlines()) == 1 or "Usage" in told.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "--device cuda is not available on this machine; cpu is\n"


@pytest.mark.parametrize("model", [MODEL, "open_clip:ViT-B-16-SigLIP", "timm:vit_tiny_patch16_224", "mini"])
def test_plain_forward_is_of_the_same_model(model: str) -> None:
    """The library's own forward pass gives what ours gives, also at a size that the model is not made for."""
    subject = build(model, CPU, torch.float32)
    for size in (subject.size, subject.size + 2 * subject.view.patch_size):
        pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            plain, ours = subject.plain(size)(pixels), subject.view.encode(pixels)
            if isinstance(subject.model, TimmModel):  # it ends in logits
                plain = plain - subject.model.model.get_parameter("head.bias")
                lengths = plain.norm(dim=-1) / (ours @ subject.model.model.get_parameter("head.weight").T).norm(dim=-1)
                ours = lengths[:, None] * ours @ subject.model.model.get_parameter("head.weight").T
            else:
                plain = F.normalize(plain, dim=-1)
        torch.testing.assert_close(plain, ours, rtol=0, atol=1e-5)


def test_rows_take_turns_in_every_round() -> None:
    calls: list[str] = []

    def row(name: str) -> None:
        calls.append(name)
        time.sleep(0.01)  # so long that a block is one call

    seconds = time_in_rounds({name: partial(row, name) for name in ("a", "b")}, 3)
    assert [name for name, _ in groupby(calls)] == ["a", "b"] * 3
    assert all(len(values) == 3 and min(values) >= 0.01 for values in seconds.values())


def test_a_further_prompt_is_what_localize_gives() -> None:
    subject = build("mini", CPU, torch.float32)
    ready = task(subject, Row("further", 64, method="legrad", prompts=1))
    ready.keep()
    heatmaps = ready.run()
    assert isinstance(heatmaps, torch.Tensor) and heatmaps.shape == (1, 64, 64)
