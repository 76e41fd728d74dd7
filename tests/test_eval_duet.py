"""VGGSound-Duet and the segmentations of IS3 and VPO, end to end on small data in their layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from eval_layouts import write_duet, write_interactive
from eval_small import small_model
from golden.files import Golden
from PIL import Image

import avgrad
from avgrad.media import open_audio
from eval.__main__ import benchmark
from eval.metrics import sound_source as ss
from eval.metrics.prompted_segmentation import score_class
from eval.runner import Settings
from eval.store import RunFolder
from eval.task import Case, DataError, Inputs
from eval.tasks.is3 import Is3, VpoMs, VpoSs
from eval.tasks.vggsound_duet import VggSoundDuet, _figures, middle


def run(task: Any, out: Path) -> list[dict[str, Any]]:
    benchmark(small_model(), task, out, Settings(("legrad",), batch_size=4), {}, workers=1)
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["results"]
    return found


# ------------------------------------------------------------------ VGGSound-Duet


def test_duet_figures_are_those_of_the_library(tmp_path: Path) -> None:
    """The whole way again by the public face, source by source."""
    task, model = VggSoundDuet(write_duet(tmp_path / "data", 4)), small_model()
    assert [(item.row, item.place) for item in task.items] == [(n, p) for n in (1, 2, 3) for p in (0, 1)]
    (row,) = run(task, tmp_path / "run")
    records = {r["file"]: r for r in json.loads((tmp_path / "data" / "metadata" / "vggss.json").read_text())}
    rule, found = ss.RULES["avgn"], []
    for item in task.items:
        waves = [soundfile.read(tmp_path / "data" / name)[0] for name in (item.audio, item.other)]
        # a second is repeated to five
        mixture = np.tile(sum(waves), 5).astype(np.float32)
        prompt = model.encode_sound(open_audio((mixture[None], 16_000)))
        image = Image.open(tmp_path / "data" / item.file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        raw = avgrad.attribute(model, model.preprocess(image)[None], prompt[None], per_layer=True).sum(2)[0]
        (large,) = ss.upsample(raw.numpy(), rule)
        truth = ss.box_mask(224 * np.array(records[Path(item.file).stem]["bbox"]))
        mask = ss.median_mask(ss.min_max(large), rule)
        found.append((ss.ciou(mask, truth), ss.confidence(large), score_class(large[None], truth[None])))
    sources = found[::2], found[1::2]
    none = np.zeros(3, dtype=bool)
    localized = [np.mean([ciou > 0.3 for ciou, _, _ in source]) for source in sources]
    precisions = [np.mean([score.average_precision for *_, score in source]) for source in sources]
    assert row["ciou"] == pytest.approx(np.mean(localized), abs=1e-12)
    assert row["piap"] == pytest.approx(np.mean(precisions), abs=1e-4)
    for name, function in (("cap", ss.localization_ap), ("cap_as_published", ss.localization_ap_as_published)):
        values = [function(*np.array([s[:2] for s in source]).T, none, 0.3) for source in sources]
        assert row[name] == pytest.approx(np.mean(values), abs=1e-6)


def test_the_mixture_of_a_pair_is_the_same_for_both_sources(tmp_path: Path) -> None:
    task, model = VggSoundDuet(write_duet(tmp_path, 3)), small_model()
    cases = [task.load(item, Inputs.of(model)) for item in task.items]
    assert torch.equal(cases[0].prompts[0], cases[1].prompts[0])  # type: ignore[arg-type]
    assert not torch.equal(cases[0].pixels, cases[1].pixels)
    assert not torch.equal(cases[0].prompts[0], cases[2].prompts[0])  # type: ignore[arg-type]


def test_the_middle_of_a_sound() -> None:
    wave = np.linspace(-0.5, 0.5, 8 * 16_000, dtype=np.float32)
    stereo = open_audio((np.stack([wave, 3 * wave]), 16_000))
    expected = (wave + (3 * wave).clip(-1, 1)) / 2
    torch.testing.assert_close(middle(stereo, 16_000), torch.from_numpy(expected[24_000:104_000]))
    assert len(middle(open_audio((wave[None, :7000], 8_000)), 16_000)) == 80_000


def test_bad_duets_are_reported(tmp_path: Path) -> None:
    root = write_duet(tmp_path / "data", 4)
    table = root / "metadata" / "vggsound_duet_test.csv"
    rows = table.read_text()
    table.write_text(f"{rows}video0_000030,dog\n..,a,video1_000030,b\nvideo0_000030,a,unknown,b\n{rows}")
    (root / "audio" / "video3_000030.wav").write_bytes(b"not a sound")
    task = VggSoundDuet(root)
    assert [(p.row, p.kind) for p in task.problems] == [
        (4, "unreadable row"),
        (4, "unreadable row"),
        (5, "unreadable row"),
        (5, "unreadable row"),
        (6, "missing file"),
        (6, "unreadable row"),
        *((row, "duplicate row") for row in (7, 8, 9) for _ in (0, 1)),
    ]
    run(task, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content["data"]["evaluated_items"] == 4 and content["problems"]["counts"]["unreadable file"] == 2
    (root / "metadata" / "vggss.json").write_text("[]")
    with pytest.raises(DataError, match=r"vggss\.json has no record of video0_000030"):
        VggSoundDuet(root)


def test_duet_figures_are_those_of_the_original(golden: Golden) -> None:
    """From the low-resolution maps to the figures of AVGN's validation (golden/benchmarks/README.md, section E)."""
    with np.load(golden("benchmarks/ssl_metrics.npz")) as arrays:
        values = dict(arrays)
    task, scores = object.__new__(VggSoundDuet), []
    for maps, boxes in zip(values["e_duet_low7"], values["e_duet_boxes"], strict=True):
        for raw, box in zip(maps, boxes, strict=True):
            case = Case(torch.empty(0), (), {"truth": ss.box_mask(box)}, b"")
            scores.append(task.measure(case, {"avgn": raw[None]})["score avgn"])
    found = np.array(scores)
    for place in (0, 1):
        prefix = f"e_duet_src{place}"
        for column, key, tolerance in ((0, "ciou", 1e-3), (2, "corrected_ap", 1e-4), (3, "piap", 1e-4)):
            np.testing.assert_allclose(found[place::2, column], values[f"{prefix}_{key}"], rtol=0, atol=tolerance)
        # the original's confidences are of scores scaled by its temperature
        order = [np.argsort(array, kind="stable") for array in (found[place::2, 1], values[f"{prefix}_conf"])]
        assert np.array_equal(*order)
    figures = _figures(found, np.tile([0, 1], len(found) // 2))
    both = {key: np.mean([values[f"e_duet_src{place}_{key}"] for place in (0, 1)])
            for key in ("auc", "ap_at_30", "precision_at_30_strict", "corrected_ap")}  # fmt: skip
    assert figures["ciou"] == pytest.approx(float(values["e_duet_ciou30_mean_of_sources"]), abs=1e-12)
    assert figures["ciou"] == pytest.approx(both["precision_at_30_strict"], abs=1e-12)
    assert figures["auc"] == pytest.approx(both["auc"], abs=1e-12)
    assert figures["cap_as_published"] == pytest.approx(both["ap_at_30"], abs=1e-4)
    assert figures["piap_as_published"] == pytest.approx(float(values["e_duet_piap"]), abs=1e-4)
    assert figures["piap"] == pytest.approx(both["corrected_ap"], abs=1e-4)


# ------------------------------------------------------------------ segmentations


def test_segmentation_scores_are_those_of_the_original(golden: Golden) -> None:
    with np.load(golden("benchmarks/ssl_metrics.npz")) as arrays:
        values = dict(arrays)
    for name, kind in (("is3", Is3), ("vpoms", VpoMs)):
        task = object.__new__(kind)
        masks = np.unpackbits(values[f"c_{name}_seg_bits"], axis=-1)[..., :224].astype(bool)
        pairs = zip(values[f"c_{name}_av_low7"], masks, strict=True)
        found = np.array([task._score(raw[None], mask) for raw, mask in pairs])
        for column, key in ((0, "ciou"), (1, "ciou_adap")):
            expected = values[f"c_{name}_seg_av_{key}"]
            np.testing.assert_allclose(found[:, column], expected, rtol=0, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("folder", ["gt_segmentation", "gt_masks"])
def test_segmentations_are_measured_beside_boxes(tmp_path: Path, folder: str) -> None:
    task = Is3(write_interactive(tmp_path / "data", 6, masks=folder))
    box, segmentation = run(task, tmp_path / "run")
    assert (box["truth"], segmentation["truth"]) == ("box", "segmentation")
    without = Is3(write_interactive(tmp_path / "boxes", 6))
    # the same images, sounds and boxes but for the random numbers that masks take
    assert [row["truth"] for row in run(without, tmp_path / "second")] == ["box"]
    measures = RunFolder.open(tmp_path / "run").measures()
    maps, rule = measures.take("map legrad"), ss.RULES["ssl-alignment"]
    cious = []
    for raw, item in zip(maps, task.items, strict=True):
        stored = Image.open(tmp_path / "data" / folder / f"{Path(item.file).stem}.jpg").convert("L")
        mask = np.asarray(stored.resize((224, 224), Image.Resampling.NEAREST)) > 127
        cious.append(ss.ciou(ss.median_mask(ss.min_max(ss.upsample(raw[None], rule)[0]), rule), mask))
    assert segmentation["ciou"] == ss.success_rate(np.array(cious))
    groups = [item.image for item in task.items]
    assert segmentation["iiou"] == ss.interactive_success(np.nan_to_num(cious), groups)


def test_bad_segmentations_are_reported(tmp_path: Path) -> None:
    root = write_interactive(tmp_path / "data", 6, 0, "vpo_ss", "visual_frames", "gray_masks")
    stems = [item.file.split("/")[1].removesuffix(".jpg") for item in VpoSs(root).items]
    table = root / "metadata" / "vpo_ss_seg.json"
    records = json.loads(table.read_text())
    records[0]["gt_box"] = None
    records[1]["gt_box"] = "/x/.."
    (root / "gray_masks" / f"{stems[2]}.jpg").unlink()
    (root / "gray_masks" / f"{stems[3]}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    Image.new("L", (224, 224)).save(root / "gray_masks" / f"{stems[4]}.jpg")
    table.write_text(json.dumps(records[:5]))
    task = VpoSs(root)
    assert [(p.row, p.kind) for p in task.problems] == [
        (1, "unreadable row"),
        (2, "unreadable row"),
        (3, "missing file"),
        (6, "unreadable row"),
    ]
    assert "vpo_ss_seg.json has no record of" in task.problems[3].message
    run(task, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content["data"]["evaluated_items"] == 1
    assert {p["row"]: p["kind"] for p in content["problems"]["rows"]} == {
        1: "unreadable row",
        2: "unreadable row",
        3: "missing file",
        4: "unreadable file",
        5: "no pixels",
        6: "unreadable row",
    }
    table.write_text("{}")
    with pytest.raises(DataError, match="not a JSON list"):
        VpoSs(root)
