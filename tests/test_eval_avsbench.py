"""AVSBench's metrics against the authors' own evaluation code (golden/benchmarks/README.md, section F)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden.files import Golden

from eval.metrics import avsbench

Array = np.ndarray


@pytest.fixture(scope="module")
def values(golden: Golden) -> dict[str, Array]:
    with np.load(golden("benchmarks/avs_metrics.npz")) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def frames(values: dict[str, Array]) -> list[tuple[Array, Array]]:
    """Probabilities and truths."""
    probabilities = torch.from_numpy(values["logits"].astype(np.float32)).sigmoid().numpy()
    masks = np.unpackbits(values["masks_bits"], axis=-1)[..., :224].astype(bool)
    return list(zip(probabilities, masks, strict=True))


def close(found: object, expected: Array, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=float), expected, rtol=0, atol=tolerance, equal_nan=True)


def test_iou(values: dict[str, Array], frames: list[tuple[Array, Array]]) -> None:
    assert [int((p > 0.5).sum()) for p, _ in frames] == values["pred_area"].tolist()
    assert [int(m.sum()) for _, m in frames] == values["gt_area"].tolist()
    ious = np.array([avsbench.frame_iou(p > 0.5, m) for p, m in frames])
    close(ious, values["miou_frame"])
    close(ious.reshape(int(values["n_videos"]), -1).mean(axis=1), values["miou_video"])
    close(ious.mean(), values["miou_one_batch"])
    close(ious.mean(), values["miou_testset_batch1"])


def test_f_score(values: dict[str, Array], frames: list[tuple[Array, Array]]) -> None:
    close(avsbench.THRESHOLDS, values["f_thresholds"], 0)
    precision, recall = zip(*(avsbench.precision_recall_curve(p, m) for p, m in frames), strict=True)
    filled = np.array([m.any() for _, m in frames])
    close(np.array(precision)[filled], values["precision_curve"][filled], 1e-5)
    close(np.array(recall)[filled], values["recall_curve"][filled], 1e-5)
    curves = np.array([avsbench.f_curve(p, m) for p, m in frames])
    close(np.nanmax(np.where(filled[:, None], curves, 0), axis=1)[filled], values["fscore_frame"][filled], 1e-5)
    assert np.isnan(curves[~filled]).all()
    close(curves[filled].mean(axis=0), values["fcurve_one_batch"], 1e-5)
    close(avsbench.f_score(curves), values["fscore_one_batch"], 1e-5)
    video = np.repeat(np.arange(values["n_videos"]), values["n_frames"])
    close([avsbench.f_score(curves[video == v]) for v in range(video.max() + 1)], values["fscore_video"], 1e-5)
    close(avsbench.f_score_as_published(curves, video), values["fscore_testset_batch1"], 1e-5)
    close(avsbench.f_score_as_published(curves, video // 2), values["fscore_testset_batch2"], 1e-5)


def test_semantic(values: dict[str, Array]) -> None:
    predicted, truth = values["avss_logits"].astype(np.float32).argmax(axis=1), values["avss_target"]
    classes = values["avss_logits"].shape[1]
    counts = np.stack([avsbench.semantic_counts(p, t, classes) for p, t in zip(predicted, truth, strict=True)])
    iou, f_scores, seen = avsbench.semantic_scores(counts)
    close(seen, values["avss_count_frame_class"])
    close(iou, values["avss_iou_frame_class"], 1e-5)
    close(f_scores, values["avss_fscore_frame_class"], 1e-5)
    close(seen.sum(axis=0), values["avss_cls_count"])
    close((iou * seen).sum(axis=0), values["avss_iou_sum"], 1e-4)
    close((f_scores * seen).sum(axis=0), values["avss_fscore_sum"], 1e-4)
    sums = sum(avsbench.semantic_sums(part) for part in np.array_split(counts, 3))
    figures = avsbench.semantic_figures(sums)
    close(figures["mean_iou"], values["avss_batch_iou_seen"], 1e-5)
    close(figures["mean_iou_as_published"], values["avss_miou"], 1e-5)
    close(figures["mean_iou_without_background_as_published"], values["avss_miou_nobg"], 1e-5)
    close(figures["f_score_as_published"], values["avss_fscore"], 1e-5)
    close(figures["f_score_without_background_as_published"], values["avss_fscore_nobg"], 1e-5)
    assert figures["mean_iou_without_background"] > figures["mean_iou_without_background_as_published"]
    with np.errstate(invalid="ignore", divide="ignore"):
        close(iou.sum(axis=1) / (iou != 0).sum(axis=1), values["avss_frame_miou"], 1e-5)
    binary = [avsbench.frame_iou(p != classes - 1, t != classes - 1) for p, t in zip(predicted, truth, strict=True)]
    close(np.mean(binary), values["avss_binary_miou"], 1e-5)
