"""AVSBench's S4 and MS3, end to end on small data in their layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_layouts import write_avsbench
from eval_small import small_model
from PIL import Image
from test_eval_runner import batches, finish

from avgrad import attribute
from eval.__main__ import benchmark
from eval.metrics.avsbench import f_curve, f_score, f_score_as_published, frame_iou
from eval.runner import Settings
from eval.store import RunFolder
from eval.task import DataError, Inputs, get_task
from eval.tasks.avsbench import AvsBenchS4


@pytest.mark.parametrize("name", ["avsbench-s4", "avsbench-ms3"])
def test_end_to_end(name: str, tmp_path: Path) -> None:
    task = get_task(name)(write_avsbench(tmp_path / "data", 2, multiple=name == "avsbench-ms3"))
    assert (task.num_rows, len(task.items), task.problems) == (10, 10, [])
    model = small_model()
    benchmark(model, task, tmp_path / "run", Settings(("legrad", "cosine"), batch_size=4), {}, workers=1)
    legrad, cosine = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    ious, curves = [], []
    for item in task.items:
        case = task.load(item, Inputs.of(model))
        prompt = case.prompts[0]
        assert isinstance(prompt, torch.Tensor)
        heatmap = attribute(model, case.pixels[None], model.encode_audio([prompt]))[0, 0].numpy()
        ious.append(frame_iou(heatmap > 0.5, case.truth["mask"]))
        curves.append(f_curve(heatmap, case.truth["mask"]))
    assert legrad["mean_iou"] == pytest.approx(np.mean(ious), abs=1e-4)
    assert legrad["f_score"] == pytest.approx(f_score(np.array(curves)), abs=1e-3)
    published = f_score_as_published(np.array(curves), np.repeat([0, 1], 5).tolist())
    assert legrad["f_score_as_published"] == pytest.approx(published, abs=1e-3)
    assert cosine["mean_iou"] != legrad["mean_iou"]
    measures = RunFolder.open(tmp_path / "run").measures()
    for row in task.summarize(measures):
        for figure, (value,) in task.resampler(measures, row)(np.ones((1, 2))).items():
            assert value == pytest.approx(row.figures[figure], abs=1e-12), figure


def test_bad_data_are_reported(tmp_path: Path) -> None:
    root = write_avsbench(tmp_path, 2)
    table = root / "Single-source" / "s4_meta_data.csv"
    table.write_text(table.read_text() + "../../x,0,dog,test\nvideo0,0,..,test\n")
    (root / "Single-source" / "s4_data" / "gt_masks" / "test" / "male_speech" / "video1" / "video1_2.png").unlink()
    task = AvsBenchS4(root)
    assert len(task.items) == 9 and task.num_rows == 20
    assert [problem.kind for problem in task.problems] == ["missing file"] + 10 * ["unreadable row"]
    mask = root / "Single-source" / "s4_data" / "gt_masks" / "test" / "male_speech" / "video0" / "video0_1.png"
    Image.new("L", (224, 112)).save(mask)
    with pytest.raises(DataError, match=r"video0_1\.png has 224 x 224 pixels and .* 224 x 112; the same proportions"):
        task.load(task.items[0], Inputs.of(small_model()))
    table.write_text("name,start\n")
    with pytest.raises(DataError, match="has no column split"):
        AvsBenchS4(root)


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    data = write_avsbench(tmp_path / "data", 1)
    finish(data, tmp_path / "one", task="avsbench-s4")
    finish(data, tmp_path / "two", ranks=2, task="avsbench-s4")
    one, two = ([path.read_bytes() for path in batches(tmp_path / name)] for name in ("one", "two"))
    assert one == two
