"""The formula of LeGrad's arithmetic against the operations that run."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F

import avgrad
from avgrad.engine.view import ViTView
from avgrad.models.view import build_view
from benchmarks.flops import count_flops, explanation_flops, floor, forward_flops
from benchmarks.models import build

CPU = torch.device("cpu")


def shape_of(architecture: str) -> ViTView:
    """The view of a model without weights."""
    config = open_clip.get_model_config(architecture)
    with torch.device("meta"):
        model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    return build_view(model.visual, architecture)


def test_products_are_counted() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert count_flops(lambda: F.linear(a, b.T)) == 2 * 3 * 5 * 7
    assert count_flops(lambda: F.relu(a) + a) == 0
    q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 4)
    with torch.no_grad():
        assert count_flops(lambda: F.scaled_dot_product_attention(q, k, k)) == 2 * 2 * 5 * 6 * 4 * 2
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        product = count_flops(lambda: torch.ops.mkldnn._linear_pointwise(a, b.T.contiguous(), None, "none", [], ""))
        assert product == 2 * 3 * 5 * 7


@pytest.mark.parametrize("model", ["mini", "open_clip:ViT-S-32-alt", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("batch", [1, 2])
def test_formula_is_what_runs(model: str, batch: int) -> None:
    subject = build(model, CPU, torch.float32)
    view = subject.view
    size = 3 * view.patch_size
    pixels = torch.randn(batch, 3, size, size)
    forward = count_flops(lambda: view.encode(pixels))
    assert forward == batch * forward_flops(view, size)
    plain = subject.plain(size)
    with torch.no_grad():  # the library's own: the same operations, and timm's go on to logits
        counted = count_flops(lambda: plain(pixels))
    assert 0 <= counted - forward <= (2 * batch * 1000 * 192 if subject.library == "timm" else 0)
    for prompts in (1, 3):
        directions = F.normalize(torch.randn(prompts, view.embed_dim), dim=-1)
        whole = count_flops(lambda directions=directions: avgrad.attribute(view, pixels, directions))  # type: ignore[misc]
        assert whole - forward == pytest.approx(batch * explanation_flops(view, size, prompts), rel=0.01)


def test_floor_of_vit_b() -> None:
    view = shape_of("ViT-B-16")
    one = floor(view, 224, 1)
    assert one == pytest.approx(1.42, abs=0.005)
    assert floor(view, 224, 1, forward_passes=0) == pytest.approx(0.42, abs=0.005)
    assert floor(view, 224, 10) == pytest.approx(5.2, abs=0.02)
    # blocks alone, as the paper and pencil have it: (5 d + n) / (12 d + 2 n)
    assert one - 1 == pytest.approx((5 * 768 + 197) / (12 * 768 + 2 * 197), rel=0.02)


def test_floor_of_larger_images() -> None:
    """Attention grows twice as fast in the forward pass as in the explanation, so the floor hardly moves."""
    view = shape_of("ViT-H-14")
    assert floor(view, 448, 1) == pytest.approx(floor(view, 224, 1), abs=0.02)


def test_no_floor_with_a_pooler() -> None:
    assert floor(shape_of("coca_ViT-B-32"), 224, 1) is None


def test_pull_backs_of_modules_are_counted() -> None:
    layer, x = torch.nn.Linear(5, 7, bias=False), torch.randn(3, 5)
    assert count_flops(lambda: torch.func.vjp(layer, x)[1](torch.ones(3, 7))) == 2 * (2 * 3 * 5 * 7)
