"""What holds for every benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_layouts import write_vggss
from eval_small import small_model

from eval.__main__ import benchmark
from eval.report import percent, table
from eval.runner import Settings
from eval.store import RunError
from eval.task import Row, get_task, list_tasks
from eval.tasks.vggss import VggSs


@pytest.mark.parametrize("name", list_tasks())
def test_published_figures_have_columns(name: str) -> None:
    task = get_task(name)
    for published in task.published:
        assert published.figures and set(published.figures) <= set(task.columns), published.name
        assert all(1 < value < 100 for value in published.figures.values())  # percent
        assert published.source
    ours = Row("legrad", {}, dict.fromkeys(task.columns, 0.5))
    lines = table(task, "mini", [ours])
    assert len(lines) == 1 + len(task.published)
    for published, line in zip(task.published, lines[1:], strict=True):
        shown = [percent(value / 100) for value in published.figures.values()]
        assert [cell for cell in line[1:] if cell] == shown
        assert published.trained_with_masks == ("trained with masks" in line[0])


def test_methods_trained_with_masks_are_marked() -> None:
    marked = {name: [p.name for p in get_task(name).published if p.trained_with_masks] for name in list_tasks()}
    assert {name: names for name, names in marked.items() if names} == {
        "ade20k-sound": ["TACO, with decoder"],
        "avsbench-avss": ["TPAVI, PVT", "CAVP"],
        "avsbench-ms3": ["TACO, with decoder"],
        "avsbench-s4": ["TACO, with decoder"],
    }


@pytest.mark.parametrize("name", list_tasks())
def test_what_the_list_shows(name: str) -> None:
    task = get_task(name)
    assert task.source.startswith(("http://", "https://", "synthetic", "avgrad scenes "))
    assert task.layout and task.measures
    assert task.modalities and set(task.modalities) <= {"audio", "text"}


def test_a_run_without_results_is_refused(tmp_path: Path) -> None:
    task = VggSs(write_vggss(tmp_path / "data", 2))
    for item in task.items:
        (tmp_path / "data" / item.file).write_bytes(b"\xff\xd8\xff nothing")
    for _ in range(2):  # resumed, too
        with pytest.raises(RunError, match="no item could be evaluated, 2 problems"):
            benchmark(small_model(), task, tmp_path / "run", Settings(("cosine",)), {}, workers=1)
