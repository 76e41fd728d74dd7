"""The sound and speech benchmarks with PE-AV, end to end on small data."""

from __future__ import annotations

import json
from pathlib import Path

import pe_av_small as small
import pytest
from eval_layouts import WRITERS
from eval_small import write_data

from avgrad.models.pe_av import PeAv
from eval.__main__ import benchmark
from eval.runner import Settings
from eval.task import get_task

QUICK = ("vggss",)
TASKS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(WRITERS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PeAv:
    return PeAv.from_folder(small.save(tmp_path_factory.mktemp("pe_av")), name="pe-av-small")


def check(out: Path) -> None:
    content = json.loads((out / "results.json").read_text())
    assert content["model"]["name"] == "pe-av-small" and content["results"]


@pytest.mark.parametrize("prompt", ["sound", "speech"])
def test_ade20k(prompt: str, model: PeAv, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = get_task(f"ade20k-{prompt}")(write_data(tmp_path / "data", prompt, 3))  # type: ignore[arg-type]
    benchmark(model, task, tmp_path / "run", Settings(("legrad",), batch_size=2), {}, workers=1)
    assert "3 of 3 rows evaluated" in capsys.readouterr().out
    check(tmp_path / "run")


@pytest.mark.parametrize("name", TASKS)
def test_sound_tasks(name: str, model: PeAv, tmp_path: Path) -> None:
    task = get_task(name)(WRITERS[name](tmp_path / "data", 4))
    benchmark(model, task, tmp_path / "run", Settings(("legrad",), batch_size=4), {}, workers=1)
    check(tmp_path / "run")
