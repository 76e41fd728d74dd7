"""Two runs side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from eval_small import small_model, write_data
from typer.testing import CliRunner

from eval.__main__ import app
from eval.compare import bootstrap, common, compare
from eval.metrics.prompted_segmentation import score_class
from eval.metrics.resampling import ClassCounts, mean_over_classes
from eval.report import latex, markdown
from eval.runner import Settings, evaluate
from eval.store import Measures, RunError, RunFolder
from eval.task import Resampler
from eval.tasks.ade20k import Ade20kSound


def made_up(generator: np.random.Generator, noise: float, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Heatmaps `[12, 40, 40]` that know the masks more or less."""
    masks = np.zeros((12, 40, 40), dtype=bool)
    for mask in masks:
        top, left = generator.integers(0, 30, 2)
        mask[top : top + 10, left : left + 10] = True
    maps = masks * generator.random((12, 1, 1)) + noise * generator.random(masks.shape)
    if levels:
        maps = np.round(maps * levels) / levels
    return maps.astype(np.float32), masks


@pytest.mark.parametrize(("noise", "levels"), [(0.3, 0), (1.0, 0), (3.0, 0), (1.0, 8)])
def test_counts_give_the_figures_of_any_choice_of_images(noise: float, levels: int) -> None:
    generator = np.random.default_rng(7)
    maps, masks = made_up(generator, noise, levels)
    counts = ClassCounts.of(maps, masks, np.arange(12))
    weights = np.concatenate([np.ones((1, 12)), generator.multinomial(12, np.full(12, 1 / 12), size=20)])
    aps, ious = counts.figures(weights)
    whole = score_class(maps, masks)
    assert aps[0] == pytest.approx(whole.average_precision, abs=1e-12 if levels else 2e-3)
    assert ious[0] == pytest.approx(whole.iou, abs=1e-12)
    for weight, ap in zip(weights, aps, strict=True):
        chosen = np.repeat(np.arange(12), weight.astype(int))
        assert ap == pytest.approx(
            score_class(maps[chosen], masks[chosen]).average_precision, abs=1e-12 if levels else 2e-3
        )


def test_a_draw_without_the_class_has_no_figure() -> None:
    maps, masks = made_up(np.random.default_rng(0), 1.0)
    weights = np.array([[1.0, 0.0]])
    aps, ious = ClassCounts.of(maps, masks, np.full(12, 1)).figures(weights)
    assert np.isnan(aps).all() and np.isnan(ious).all()


def resampler(counts: ClassCounts) -> Resampler:
    return lambda weights: {"ap": mean_over_classes([counts.figures(weights)[0]])}


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Two equally good methods: the 95 % interval of their difference holds 0 in about 95 of 100 experiments."""
    generator, covered = np.random.default_rng(3), 0
    for _ in range(60):
        runs = []
        masks = made_up(generator, 1.0)[1]
        for _ in range(2):
            maps = masks * generator.random((12, 1, 1)) + generator.random(masks.shape)
            runs.append(resampler(ClassCounts.of(maps.astype(np.float32), masks, np.arange(12))))
        draws = bootstrap(runs[0], runs[1], 12, 200, 0)["ap"][1:]
        low, high = np.percentile(draws, [2.5, 97.5])
        covered += low <= 0 <= high
    assert 48 <= covered <= 60


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("compare")
    data = Ade20kSound(write_data(root / "data", "sound", 9))
    for name, seed, limit, methods in (("a", 0, None, ("legrad", "cosine")), ("b", 1, 7, ("cosine", "raw_attention"))):
        part = data if limit is None else Ade20kSound(root / "data", limit)
        evaluate(small_model(seed), part, root / name, Settings(methods), {}, 1)
    return root / "a", root / "b"


def measures(path: Path) -> Measures:
    return RunFolder.open(path).measures()


def test_a_run_does_not_differ_from_itself(runs: tuple[Path, Path]) -> None:
    a = measures(runs[0])
    row = next(row for row in Ade20kSound.summarize(a) if row.method == "legrad")
    differences = compare(Ade20kSound, (a, a), (row, row), replicates=100)
    assert [d.figure for d in differences] == list(Ade20kSound.columns)
    assert [(d.a, d.low, d.high, d.p_value) for d in differences] == [(d.b, 0.0, 0.0, 1.0) for d in differences]


def test_only_common_rows_are_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = common(measures(runs[0]), measures(runs[1]))
    assert a.field("row").tolist() == b.field("row").tolist() == [1, 2, 3, 4, 5, 6, 7]
    other = Ade20kSound(write_data(tmp_path / "data", "sound", 3, seed=5))
    evaluate(small_model(), other, tmp_path / "run", Settings(("cosine",)), {}, 1)
    with pytest.raises(RunError, match="not over the same data"):
        common(measures(runs[0]), measures(tmp_path / "run"))


def test_the_command(runs: tuple[Path, Path]) -> None:
    a, b = (str(run) for run in runs)
    told = CliRunner().invoke(app, ["compare", a, b, "--replicates", "100", "--latex"])
    assert told.exit_code == 0, told.output
    assert "7 items of 7 images" in told.output
    assert told.output.count("| cosine    |") == 4 and "legrad" not in told.output
    assert r"\begin{tabular}" in told.output
    again = CliRunner().invoke(app, ["compare", a, b, "--replicates", "100", "--latex"])
    assert again.output == told.output
    one = CliRunner().invoke(
        app, ["compare", a, b, "--replicates", "100", "--method-a", "legrad", "--method-b", "raw_attention"]
    )
    assert one.output.count("| legrad / raw_attention |") == 4
    wrong = CliRunner().invoke(app, ["compare", a, b, "--method-a", "raw_attention"])
    assert wrong.exit_code == 1 and "no heatmaps of raw_attention" in wrong.output
    wrong = CliRunner().invoke(app, ["compare", a, str(Path(b).parent)])
    assert wrong.exit_code == 1 and "holds no run" in wrong.output


def test_tables_can_be_pasted() -> None:
    header, rows = ("Method", "mAP"), [("raw_attention", "48.0"), ("a & b", "7.5")]
    assert markdown(header, rows).splitlines() == [
        "| Method        |   mAP |",
        "|:--------------|------:|",
        "| raw_attention |  48.0 |",
        "| a & b         |   7.5 |",
    ]
    assert [" ".join(line.split()) for line in latex(header, rows).splitlines()] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Method & mAP \\",
        r"\midrule",
        r"raw\_attention & 48.0 \\",
        r"a \& b & 7.5 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
