"""The layer ablation: one pass gives what a run for each first layer gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_layouts import write_openimages, write_vggss
from eval_small import small_model, write_data
from typer.testing import CliRunner

import avgrad
from eval.__main__ import app, benchmark
from eval.runner import Settings
from eval.store import RunError
from eval.task import Task
from eval.tasks.ade20k import Ade20kSpeech
from eval.tasks.openimages_v7 import OpenImagesV7
from eval.tasks.scenes import Scenes
from eval.tasks.vggss import VggSs


def run(task: Task, out: Path, **settings: Any) -> dict[str, Any]:
    benchmark(small_model(), task, out, Settings(("cosine", "legrad"), batch_size=4, **settings), {}, workers=1)
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def test_equals_a_run_for_each_first_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = VggSs(write_vggss(tmp_path / "data", 4))
    content = run(task, tmp_path / "run", layer_ablation=True)
    assert [row["method"] for row in content["results"]] == ["cosine", "legrad"]
    ablation = content["layer_ablation"]
    assert [row["first_layer"] for row in ablation] == [0, 1, 2]
    for row in ablation:
        alone = run(task, tmp_path / f"from {row['first_layer']}", layers=row["first_layer"])["results"][1]
        for figure in ("ciou", "auc", "ciou_adaptive", "auc_adaptive"):
            assert row[figure] == alone[figure]
    assert "layer_ablation" not in run(task, tmp_path / "without")
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Layer ablation" in report and report.count("data:image/jpeg;base64,") == 1 + 4 * 4
    assert "|             2 |" in capsys.readouterr().out
    with pytest.raises(RunError, match="layer_ablation false, not true"):
        run(task, tmp_path / "without", layer_ablation=True)


def test_only_the_layers_chosen_and_every_variant(tmp_path: Path) -> None:
    task = Ade20kSpeech(write_data(tmp_path / "data", "speech", 3))
    content = run(task, tmp_path / "run", layer_ablation=True, layers=(0, 2))
    rows = [(row["first_layer"], row["timing"], row["normalization"]) for row in content["layer_ablation"]]
    assert len(rows) == 2 * 4 and {row[0] for row in rows} == {0, 2}
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<th>mAP (basic, dataset)</th>" in text


def test_any_benchmark_can_be_ablated(tmp_path: Path) -> None:
    model = avgrad.load("mini")
    for task in (OpenImagesV7(write_openimages(tmp_path / "points", 2)), Scenes(limit=2, prompts="text")):
        benchmark(model, task, tmp_path / task.name, Settings(("legrad",), layer_ablation=True), {}, workers=1)
        content = json.loads((tmp_path / task.name / "results.json").read_text())
        layers = [row["first_layer"] for row in content["layer_ablation"]]
        assert sorted(set(layers)) == [0, 1, 2, 3, 4, 5]
        main = next(iter(task.columns))
        assert len({row[main] for row in content["layer_ablation"]}) > 1


def test_needs_legrad(tmp_path: Path) -> None:
    arguments = ["vggss", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--method", "cosine"]
    result = CliRunner().invoke(app, [*arguments, "--layer-ablation"])
    assert result.exit_code == 2 and "it needs --method legrad" in result.output
