"""Sound source localization against the authors' own evaluation code (golden/benchmarks/README.md, sections A to E)."""

from __future__ import annotations

import numpy as np
import pytest
from golden.files import Golden

from eval.metrics import sound_source as ss
from eval.metrics.prompted_segmentation import score_class

Array = np.ndarray
ITEM, RATE = 1e-3, 1e-4  # one pixel at a threshold; figures of the whole set


@pytest.fixture(scope="module")
def values(golden: Golden) -> dict[str, Array]:
    with np.load(golden("benchmarks/ssl_metrics.npz")) as arrays:
        return dict(arrays)


def unpacked(bits: Array) -> Array:
    return np.unpackbits(bits, axis=-1)[..., :224].astype(bool)


def close(found: object, expected: Array, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=float), expected, rtol=0, atol=tolerance, equal_nan=True)


def valid(boxes: Array) -> Array:
    """Boxes without their padding, NaN or -1."""
    return boxes[(boxes >= 0).any(-1)] if boxes.dtype.kind == "i" else boxes[~np.isnan(boxes).any(-1)]


# ------------------------------------------------------------------ upsampling


def test_maps_are_upsampled_as_the_originals_do(values: dict[str, Array]) -> None:
    for rule, maps, first, rows in (
        ("lvs", "a_low14", "a_up224_first", "a_up224_row100"),
        ("ez-vsl", "b_ez_av_low7", "b_ez_up_bilinear_ac_item0", "b_ez_up_bilinear_ac_row100"),
        ("slavc", "b_slavc_av_low7", "b_slavc_up_bicubic_ac_item0", "b_slavc_up_bicubic_ac_row100"),
    ):
        large = ss.upsample(values[maps], ss.RULES[rule])
        # rounding in float32 grows with the values, here up to 1 / tau, and differs between releases of torch
        tolerance = max(1e-5, 2e-6 * float(np.abs(values[rows]).max()))
        close(large[0], values[first], tolerance)
        close(large[:, 100], values[rows], tolerance)
    duet = ss.upsample(values["e_duet_low7"].reshape(-1, 7, 7), ss.RULES["avgn"])
    close(duet[:, 100].reshape(-1, 2, 224), values["e_duet_up_bicubic_noac_row100"], 1e-5)


# ------------------------------------------------------------------ A. LVS


def truth_a(values: dict[str, Array], data: str, item: int) -> Array:
    if data == "vggss":
        return ss.box_mask(224 * valid(values["a_boxes"][item]))
    return ss.consensus(values["a_flickr_boxes256"][item][:, None])


@pytest.mark.parametrize("data", ["vggss", "flickr"])
def test_lvs(values: dict[str, Array], data: str) -> None:
    rule, cious = ss.RULES["lvs"], []
    for item, large in enumerate(ss.upsample(values["a_low14"], rule)):
        boxes = valid(values["a_boxes"][item]) if data == "vggss" else valid(values["a_flickr_boxes256"][item])
        truth = ss.box_mask(224 * boxes) if data == "vggss" else ss.consensus(boxes[:, None])
        assert np.array_equal(2 * truth.astype(float), values[f"a_{data}_gtmap2"][item])
        mask = ss.median_mask(ss.normalized(large, rule), rule)
        assert (mask != unpacked(values["a_pred_bits"][item])).sum() <= 8
        cious.append(ss.ciou(mask, truth))
    close(cious, values[f"a_{data}_ciou"], ITEM)
    close(ss.success_rate(values[f"a_{data}_ciou"]), values[f"a_{data}_ciou_at_05"], 1e-12)
    close(ss.success_auc(values[f"a_{data}_ciou"]), values[f"a_{data}_auc"], 1e-12)
    close(ss.success_rate(np.array(cious)), values[f"a_{data}_ciou_at_05"], 1e-12)
    close(ss.success_auc(np.array(cious)), values[f"a_{data}_auc"], 1e-12)


# ------------------------------------------------------------------ B1. EZ-VSL


@pytest.mark.parametrize("data", ["vggss", "flickr"])
def test_ez_vsl(values: dict[str, Array], data: str) -> None:
    rule = ss.RULES["ez-vsl"]
    truths = values[f"b_ez_{data}_gtmap2"] / 2
    audio, objects = (
        [ss.normalized(large, rule) for large in ss.upsample(values[f"b_ez_{name}_low7"], rule)]
        for name in ("av", "obj")
    )
    both = [ss.min_max(ss.combine(a, o)) for a, o in zip(audio, objects, strict=True)]
    for name, maps in (("av", audio), ("obj", objects), ("av_obj", both)):
        prefix = f"b_ez_{data}_{name}"
        cious = [ss.ciou(ss.median_mask(m, rule), t) for m, t in zip(maps, truths, strict=True)]
        close(cious, values[f"{prefix}_ciou"], ITEM)
        close(ss.success_rate(np.array(cious)), values[f"{prefix}_ap50"], 1e-12)
        close(np.mean(cious), values[f"{prefix}_meanciou"], ITEM)
        close(ss.success_auc(np.array(cious)), values[f"{prefix}_auc"], 1e-12)


# ------------------------------------------------------------------ B2, E. the extended protocol

SIZES = {"small": (0, 32), "medium": (32, 96), "large": (96, 144), "huge": (144, 10**4)}


def extended(values: dict[str, Array], kind: str, name: str) -> tuple[Array, Array, list[Array], list[Array]]:
    """cIoU, confidence, masks and truths of the items."""
    rule, tau = ss.RULES["slavc"], float(values["b_slavc_tau"])
    audio = (ss.upsample(values["b_slavc_av_low7"], rule) + 1 / tau) / (2 / tau)
    objects = ss.upsample(values["b_slavc_obj_low7"], rule) / 2.5
    scores = {"av": audio, "obj": objects, "av_obj": ss.combine(audio, objects)}[name]
    truths = [ss.box_mask(valid(boxes)) for boxes in values["b_slavc_boxes"]]
    masks = [ss.median_mask(ss.normalized(s, rule), rule) if kind == "rel" else s >= 0.5 for s in scores]
    cious = np.array([ss.ciou(mask, truth) for mask, truth in zip(masks, truths, strict=True)])
    return cious, np.array([ss.confidence(s) for s in scores]), masks, truths


@pytest.mark.parametrize("kind", ["rel", "abs"])
@pytest.mark.parametrize("name", ["av", "obj", "av_obj"])
def test_extended(values: dict[str, Array], kind: str, name: str) -> None:
    for prefix, levels in ((f"b_slavc_{kind}_{name}", (50, 75)), (f"e_avgn_{kind}_{name}", (30, 50, 75))):
        cious, confidences, masks, truths = extended(values, kind, name)
        negative = values["b_slavc_is_negative"]
        close(cious, values[f"{prefix}_ciou"], ITEM)
        close(confidences, values[f"{prefix}_conf"], 1e-4)
        cious, confidences = values[f"{prefix}_ciou"], values[f"{prefix}_conf"]  # their own, or a tie may break
        stats = dict(zip(values[f"{prefix}_stat_names"], values[f"{prefix}_stat_values"], strict=True))
        areas = np.array([truth.sum() for truth in truths])
        subsets = {"all": np.ones(24, dtype=bool), "visible": ~negative}
        subsets |= {key: ~negative & (areas >= low**2) & (areas < high**2) for key, (low, high) in SIZES.items()}
        for subset, chosen in subsets.items():
            arguments = cious[chosen], confidences[chosen], negative[chosen]
            close(ss.success_auc(arguments[0][~arguments[2]]), stats[f"AUC-{subset}@50"], RATE)
            for level in levels:
                ap = ss.localization_ap_as_published(*arguments, level / 100)
                close(ap, stats[f"AP-{subset}@{level}"], RATE)
                precision, _ = ss.precision_recall(*arguments, -1000, level / 100)
                close(precision, stats[f"Precision-{subset}@{level}"], RATE)
                if subset == "visible":
                    accuracy = ss.localization_accuracy(*arguments[::2], level / 100)
                    close(accuracy, stats[f"Precision-visible@{level}"], RATE)
        found = ss.f1_scores(cious, confidences, negative)
        for array, key in zip(found, ("pr_thresholds", "precision", "recall", "f1"), strict=True):
            close(array, values[f"{prefix}_{key}_at50"], 1e-6)
        close(ss.max_f1_as_published(cious, confidences, negative), values[f"{prefix}_maxf1_at50"], 1e-6)
        default = 0.0 if prefix == f"e_avgn_{kind}_av_obj" else 0.5
        f1 = ss.harmonic_mean(*ss.precision_recall(cious, confidences, negative, default))
        close(f1, values[f"{prefix}_f1_default_conf"], 1e-6)
        if prefix.startswith("e_"):
            close(ss.max_f1_as_published(cious, confidences, negative, 0.3), values[f"{prefix}_maxf1_at30"], 1e-6)
            piap = [ss.piap_as_published(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
            close(piap, values[f"{prefix}_piap"], RATE)
            close(np.mean(piap), values[f"{prefix}_piap_average"], RATE)


def test_pixel_average_precision_with_its_arguments_in_order(values: dict[str, Array]) -> None:
    rule, tau = ss.RULES["slavc"], float(values["b_slavc_tau"])
    audio = (ss.upsample(values["b_slavc_av_low7"], rule) + 1 / tau) / (2 / tau)
    _, _, masks, truths = extended(values, "rel", "av")
    for key, scores in (("av", list(audio)), ("binary_av", [mask.astype(np.float32) for mask in masks])):
        pairs = zip(scores, truths, strict=True)
        close(
            [score_class(s[None], t[None]).average_precision for s, t in pairs],
            values[f"e_avgn_corrected_ap_{key}"],
            RATE,
        )


def test_corrected_figures_of_the_extended_protocol() -> None:
    """A perfect ranking scores 1; the published figures leave out the first step of recall, or most thresholds."""
    cious, negative = np.repeat([1.0, 0.0], 10), np.repeat([False, True], 10)
    confidences = np.linspace(1, 0, 20)
    assert ss.localization_ap(cious, confidences, negative) == pytest.approx(1.0)
    assert ss.localization_ap_as_published(cious, confidences, negative) == pytest.approx(0.8)
    assert ss.max_f1(cious, confidences, negative) == 1.0
    assert ss.max_f1_as_published(cious, confidences, negative) == 1.0
    rng = np.random.default_rng(0)
    cious, confidences, negative = rng.random(100), rng.random(100), rng.random(100) < 0.4
    assert ss.max_f1(cious, confidences, negative) >= ss.max_f1_as_published(cious, confidences, negative)


def test_duets(values: dict[str, Array]) -> None:
    rule = ss.RULES["avgn"]
    strict, aps = [], []
    for source in (0, 1):
        large = ss.upsample(values["e_duet_low7"][:, source], rule)
        truths = [ss.box_mask(box) for box in values["e_duet_boxes"][:, source]]
        masks = [ss.median_mask(ss.normalized(m, rule), rule) for m in large]
        cious = np.array([ss.ciou(m, t) for m, t in zip(masks, truths, strict=True)])
        prefix = f"e_duet_src{source}"
        close(cious, values[f"{prefix}_ciou"], ITEM)
        strict.append(float((cious > 0.3).mean()))
        close(strict[-1], values[f"{prefix}_precision_at_30_strict"], 1e-12)
        close(ss.success_auc(cious), values[f"{prefix}_auc"], 1e-12)
        piap = [ss.piap_as_published(m, t) for m, t in zip(masks, truths, strict=True)]
        close(piap, values[f"{prefix}_piap"], RATE)
        corrected = [score_class(m[None], t[None]).average_precision for m, t in zip(large, truths, strict=True)]
        close(corrected, values[f"{prefix}_corrected_ap"], RATE)
        cap = ss.localization_ap_as_published(cious, values[f"{prefix}_conf"], np.zeros(8, dtype=bool), 0.3)
        close(cap, values[f"{prefix}_ap_at_30"], RATE)
        aps.append(np.mean(piap))
    sources = [(values[f"e_duet_src{source}_ciou"], values[f"e_duet_src{source}_conf"]) for source in (0, 1)]
    close(np.mean([(cious > 0.1).mean() for cious, _ in sources]), values["e_duet_precision_at_10"], 1e-12)
    none = np.zeros(8, dtype=bool)
    f1 = [ss.harmonic_mean(*ss.precision_recall(*source, none, 0.5, 0.3)) for source in sources]
    close(np.mean(f1), values["e_duet_f1_at_30"], 1e-6)
    close(np.mean(strict), values["e_duet_ciou30_mean_of_sources"], 1e-12)
    close(np.mean(aps), values["e_duet_piap"], RATE)


# ------------------------------------------------------------------ C. IS3 and VPO


@pytest.mark.parametrize("data", ["is3", "vpoms", "vposs"])
@pytest.mark.parametrize("variant", ["box", "box_lvs", "box_lvscv2", "seg"])
@pytest.mark.parametrize("part", ["av", "ogl"])
def test_interactive(values: dict[str, Array], data: str, variant: str, part: str) -> None:
    prefix = f"c_{data}_{variant}_{part}"
    if f"{prefix}_ciou" not in values:
        assert variant in ("seg", "box_lvscv2") and data != "is3"
        return
    rule = ss.RULES["ssl-alignment"]
    if variant == "box_lvs":
        rule = ss.Rule("bilinear", True, False, flipped=True)
    elif variant == "box_lvscv2":
        rule = ss.RULES["lvs"]
    audio, objects = ([ss.normalized(large, rule) for large in ss.upsample(values[f"c_{data}_{name}_low7"], rule)]
                      for name in ("av", "obj"))  # fmt: skip
    maps = audio if part == "av" else [ss.min_max(ss.combine(a, o)) for a, o in zip(audio, objects, strict=True)]
    truths = [ss.box_mask(box) for box in values[f"c_{data}_boxes"]]
    if variant == "seg":
        truths = list(unpacked(values[f"c_{data}_seg_bits"]))
    strict = ss.Rule(rule.mode, rule.align_corners, inclusive=False)
    masks = {"": [ss.median_mask(m, strict) for m in maps],
             "_adap": [ss.adaptive_mask(m, t) for m, t in zip(maps, truths, strict=True)]}  # fmt: skip
    groups = [name.rpartition("_")[0] for name in values[f"c_{data}_names"]]
    for suffix, chosen in masks.items():
        cious = np.array([ss.ciou(m, t) for m, t in zip(chosen, truths, strict=True)])
        expected = values[f"{prefix}_ciou{suffix}"]
        close(cious, expected, ITEM)
        assert np.abs([m.sum() for m in chosen] - values[f"{prefix}_area{suffix}"]).max() <= 8
        close(ss.success_rate(expected), values[f"{prefix}_cIoU50{suffix}"], 1e-12)
        close(ss.success_auc(expected), values[f"{prefix}_AUC{suffix}"], 1e-12)
        if part == "av":
            close(ss.interactive_success(expected, groups), values[f"{prefix}_IIoU{suffix}"], 1e-12)
            close(ss.interactive_auc(expected, groups), values[f"{prefix}_IAUC{suffix}"], 1e-12)
            by_group = ss.group_success(expected, groups)
            assert list(by_group) == list(values[f"{prefix}_group_names"])
            close(list(by_group.values()), values[f"{prefix}_group_iiou{suffix}"], 1e-12)


# ------------------------------------------------------------------ D. negative audio

NEGATIVES = ("silence", "noise", "offscreen")


@pytest.mark.parametrize("model", ["ezvsl", "slavc", "lvs", "lvscv2"])
def test_negative_audio(values: dict[str, Array], model: str) -> None:
    rule = ss.RULES["lvs" if model == "lvscv2" else "ssl-alignment"]
    size, half_pixel = 14 if model.startswith("lvs") else 7, ss.RULES["lvs"]
    maps = {"pos": ss.upsample(values[f"d_low{size}_pos"], rule)}
    maps |= {name: ss.upsample(values[f"d_low{size}_{name}"], half_pixel) for name in NEGATIVES}
    truths = [ss.box_mask(box) for box in values["d_boxes"]]
    stats = dict(zip(values[f"d_{model}_stat_names"], values[f"d_{model}_stat_values"], strict=True))
    thresholds = dict(zip(("max", "max10", "maxq3"), values[f"d_{model}_thresholds"], strict=True))
    for key, threshold in {"05": 0.5, **thresholds}.items():
        limit = np.float32(threshold)
        cious = np.nan_to_num([ss.ciou(m > limit, t) for m, t in zip(maps["pos"], truths, strict=True)])
        close(cious, values[f"d_{model}_ciou_{key}_wogl"], ITEM)
        close(100 * np.mean(cious), stats[f"ciou_{key}_mean_wogl"], 100 * ITEM)
        auc = 100 * ss.success_auc(values[f"d_{model}_ciou_{key}_wogl"])
        close(auc, stats[f"auc_{key}_wogl"], 1e-9)
        suffix, aocs = "" if key == "05" else f"_{key}", []
        for name in NEGATIVES:
            shares = [ss.predicted_share(m > limit) for m in maps[name]]
            expected = values[f"d_{model}_pia_batch_{name}{suffix}_wogl"]
            close(shares, expected, RATE)
            aocs.append(100 * ss.negative_auc(expected))
            close(aocs[-1], stats[f"auc_{name}{suffix}_wogl"], 1e-9)
            if key == "maxq3":
                close(ss.harmonic_mean(auc, aocs[-1]), stats[f"f_auc_aoc_pos_{name}"], 1e-9)
        if key == "maxq3":
            close(np.mean(aocs), stats["aoc_mean_neg"], 1e-9)
            close(ss.harmonic_mean(auc, float(np.mean(aocs))), stats["f_auc_aoc_pos_neg"], 1e-9)
            localized = 100 - 100 * np.mean([values[f"d_{model}_pia_batch_{n}_maxq3_wogl"] for n in NEGATIVES])
            close(localized, stats["pia_mean_neg"], 1e-6)
            close(ss.harmonic_mean(stats["ciou_maxq3_mean_wogl"], localized), stats["f_pos_neg"], 1e-6)
            pairs = [("pos", n) for n in NEGATIVES] + [("silence", "noise"), ("silence", "offscreen"),
                                                       ("noise", "offscreen")]  # fmt: skip
            for a, b in pairs:
                ious = [ss.mask_iou(x > limit, y > limit) for x, y in zip(maps[a], maps[b], strict=True)]
                close(ious, values[f"d_{model}_iou_{a}_{b}_maxq3_wogl"], ITEM)
