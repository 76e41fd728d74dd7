"""Refined heatmaps: against a slow guided filter, on scenes with known masks, and in files."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avgrad import InputError, Localization, Localizer, Prompt, load
from avgrad.refine import _sam2, check_refinement, guided, list_refiners, refine
from avgrad.scenes import CLASSES, draw_scene, scene_rng


@pytest.fixture(scope="module")
def scene_result() -> tuple[Localization, np.ndarray]:
    """A text located in a scene, and the mask of its object."""
    scene = draw_scene(scene_rng("test refine", 0, 0), 128, classes=[0])
    localizer = Localizer(load("mini"))
    localizer.set_image(Image.fromarray(scene.image))
    return localizer.localize(text=CLASSES[0].name), scene.masks[0]


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def slow_guided(image: np.ndarray, heat: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """He et al.'s equations (11, 14, 15) for color guides, window by window; windows are mirrored at the border."""
    height, width = heat.shape
    image = np.pad(image.astype(np.float64), ((2 * radius,) * 2, (2 * radius,) * 2, (0, 0)), mode="symmetric")
    heat = np.pad(heat.astype(np.float64), 2 * radius, mode="symmetric")
    slopes, offsets = np.zeros((*heat.shape, 3)), np.zeros(heat.shape)
    for y in range(radius, heat.shape[0] - radius):
        for x in range(radius, heat.shape[1] - radius):
            window = np.s_[y - radius : y + radius + 1, x - radius : x + radius + 1]
            colors, values = image[window].reshape(-1, 3), heat[window].ravel()
            covariance = np.cov(colors.T, bias=True) + epsilon * np.eye(3)
            cross = ((colors - colors.mean(0)) * (values - values.mean())[:, None]).mean(0)
            slopes[y, x] = np.linalg.solve(covariance, cross)
            offsets[y, x] = values.mean() - slopes[y, x] @ colors.mean(0)
    result = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            around = np.s_[y + radius : y + 3 * radius + 1, x + radius : x + 3 * radius + 1]
            slope, offset = slopes[around].mean((0, 1)), offsets[around].mean()
            result[y, x] = slope @ image[y + 2 * radius, x + 2 * radius] + offset
    return result.clip(0, 1)


def test_guided_filter_against_a_slow_one() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((14, 17, 3), dtype=np.float32)
    heat = rng.random((14, 17), dtype=np.float32)
    expected = slow_guided(image, heat, 3, 1e-2)
    np.testing.assert_allclose(guided(image, heat, 2.0, epsilon=1e-2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["guided", "grabcut", "random_walker"])
def test_masks_follow_edges(method: str, scene_result: tuple[Localization, np.ndarray]) -> None:
    result, truth = scene_result
    refined = result.refine(method)
    before, after = (iou(r.mask(0.5)[0].numpy(), truth) for r in (result, refined))
    assert after > before + 0.05
    assert refined.heatmaps.shape == result.heatmaps.shape and refined.heatmaps.dtype == torch.float32
    assert refined.heatmaps.min() == 0 and refined.heatmaps.max() == 1
    assert torch.equal(result.refine(method).heatmap(0), refined.heatmaps[0])  # the same bits again
    x, y = refined.peak(0)
    assert refined.heatmaps[0, y, x] == 1
    assert torch.equal(refined.maps, result.maps)


@pytest.mark.parametrize("method", ["guided", "grabcut", "random_walker"])
def test_large_images_and_odd_ones(method: str, scene_result: tuple[Localization, np.ndarray]) -> None:
    result, truth = scene_result
    large = replace(result, image=result.image.resize((1000, 1000), Image.Resampling.BICUBIC)).refine(method)
    mask = np.asarray(Image.fromarray(truth).resize((1000, 1000)))
    assert iou(large.mask(0.5)[0].numpy(), mask) > iou(result.mask(0.5)[0].numpy(), truth) + 0.05
    for size in ((1, 1), (1, 40), (700, 3)):
        assert torch.isfinite(replace(result, image=result.image.resize(size)).refine(method).heatmaps).all()
    constant = replace(result, maps=torch.zeros_like(result.maps)).refine(method)
    assert not constant.heatmaps.any()
    flat = replace(result, image=Image.new("RGB", (60, 50), "gray")).refine(method)
    assert torch.isfinite(flat.heatmaps).all()


def test_kept_on_disk(tmp_path: Path, scene_result: tuple[Localization, np.ndarray]) -> None:
    refined = scene_result[0].refine("guided", radius=1.25)
    refined.save(tmp_path)
    loaded = Localization.load(tmp_path)
    assert loaded.refinement == {"method": "guided", "radius": 1.25, "epsilon": 1e-4}
    assert torch.equal(loaded.heatmaps, refined.heatmaps)


def test_refused(scene_result: tuple[Localization, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    result = scene_result[0]
    with pytest.raises(InputError, match="no refinement 'snake'; expected one of guided, grabcut, random_walker, sam2"):
        result.refine("snake")
    with pytest.raises(InputError, match="guided has no option 'sigma'; expected one of radius, epsilon"):
        result.refine(sigma=1)
    with pytest.raises(InputError, match="radius='wide' of guided is not accepted; expected a number"):
        result.refine(radius="wide")
    with pytest.raises(InputError, match="epsilon=0 of guided is out of range"):
        result.refine(epsilon=0)
    with pytest.raises(InputError, match=r"weights='/nowhere' of sam2 cannot be loaded"):
        result.refine("sam2", weights="/nowhere").heatmap(0)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"needs opencv-python-headless.*pip install 'avgrad\[refine\]'"):
        result.refine("grabcut").heatmap(0)
    assert list_refiners() == ["guided", "grabcut", "random_walker", "sam2"]


def test_sam2_by_transformers(tmp_path: Path, scene_result: tuple[Localization, np.ndarray]) -> None:
    """Random weights in the published layout: the mask that is returned is that of transformers' own call."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[4],
        window_positional_embedding_background_size=[7, 7],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
        num_feature_levels=3,
    )
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32},
    )
    transformers.Sam2Model(config).save_pretrained(tmp_path)
    processor = transformers.Sam2Processor(transformers.Sam2ImageProcessor(size={"height": 128, "width": 128}))
    processor.save_pretrained(tmp_path)
    result = scene_result[0]
    found = result.refine("sam2", weights=str(tmp_path)).heatmap(0)
    heat = result.heatmap(0)
    rows, columns = torch.nonzero(heat >= 0.5, as_tuple=True)
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    model, loaded = transformers.Sam2Model.from_pretrained(tmp_path).eval(), _sam2(str(tmp_path))[0]
    inputs = loaded(
        images=result.image,
        input_points=[[[[float(column), float(row)]]]],
        input_labels=[[[1]]],
        input_boxes=[[[float(value) for value in box]]],
        return_tensors="pt",
    )
    with torch.no_grad():
        masks = model(**inputs, multimask_output=False).pred_masks[0, :, :1]
    size = (result.image.height, result.image.width)
    expected = torch.nn.functional.interpolate(masks, size=size, mode="bilinear", align_corners=False)[0, 0].sigmoid()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    _sam2.cache_clear()


def test_options_are_filled_in() -> None:
    assert check_refinement("guided", {"radius": 2}) == {"radius": 2, "epsilon": 1e-4}
    heat = np.zeros((4, 4), dtype=np.float32)
    assert refine(Image.new("RGB", (4, 4)), heat, (2, 2), "guided", check_refinement("guided", {})) is heat


def test_prompts_are_refined_one_by_one(scene_result: tuple[Localization, np.ndarray]) -> None:
    result = scene_result[0]
    two = replace(
        result,
        prompts=[*result.prompts, Prompt(torch.ones(128), "other", "text")],
        scores=torch.zeros(2),
        maps=torch.cat([result.maps, result.maps.flip(-1)]),
        layer_maps=torch.cat([result.layer_maps, result.layer_maps]),
    ).refine()
    alone = two.heatmap(1)
    assert torch.equal(two.heatmaps[1], alone)
    assert torch.equal(two.heatmaps[0], result.refine().heatmap(0))
