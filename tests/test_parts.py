"""Parts read weights when used, refuse what they would leave out, and work wherever a caller is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from random_views import attention_pooler, modules_of, random_input, random_view, to
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from avgrad import attribute
from avgrad.engine.methods import list_methods
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear, Weight
from avgrad.engine.view import ViTView, check_view, interpolate_positions
from avgrad.errors import UnsupportedModelError

KINDS: dict[str, Callable[[], ViTView]] = {
    "plain": lambda: random_view(layers=2, layer_scale=True),
    "all sorts": lambda: random_view(
        layers=2,
        heads=4,
        kind="sandwich",
        tail=True,
        extras=("rotary", "bias", "gate", "head_scale", "gated", "qk_norm"),
    ),
    "pooler": lambda: replace(random_view(layers=2), pooler=attention_pooler(queries=2, pool="mean")),
}


class LoRALinear(nn.Linear):
    """As peft and others wrap layers: the weight is there, and is not all of it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_modules_that_compute_something_else_are_refused() -> None:
    hooked, replaced, frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    frozen.register_forward_pre_hook(lambda module, inputs: None)
    for module, message in (
        (LoRALinear(3, 3), "a LoRALinear stands where a plain linear layer is expected"),
        (hooked, "a Linear has forward hooks"),
        (frozen, "a Linear has forward hooks"),
        (replaced, "the forward method of a Linear was replaced"),
        (parametrizations.weight_norm(nn.Linear(3, 3)), "ParametrizedLinear"),
        (torch.ao.nn.quantized.dynamic.Linear(3, 3), "plain linear layer is expected"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            Linear(module)
        with pytest.raises(UnsupportedModelError):
            Weight(hooked, "weight")
    with pytest.raises(UnsupportedModelError, match="not a plain floating-point matrix"):
        Linear(_of_integers())
    with pytest.raises(UnsupportedModelError, match="a BatchNorm1d stands where a plain norm is expected"):
        Norm(nn.BatchNorm1d(3))


def _of_integers() -> nn.Linear:
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return layer


def test_maps_are_cut_out_of_a_module() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, kdim=6, vdim=4)
    x = torch.randn(5, 4)
    value = Linear(attention, "v_proj_weight", "in_proj_bias", bias_rows=(12, 18))
    torch.testing.assert_close(value(x), F.linear(x, attention.v_proj_weight, attention.in_proj_bias[12:]))
    holder = nn.Module()
    holder.inner, holder.q_bias, holder.v_bias = nn.Linear(4, 9, bias=False), nn.Parameter(torch.ones(3)), None
    packed = Linear(holder, "inner.weight", ("q_bias", None, "q_bias"))
    expected = x @ holder.inner.weight.T + torch.tensor([1.0] * 3 + [0.0] * 3 + [1.0] * 3)
    torch.testing.assert_close(packed(x), expected)
    cut = Linear(holder, "inner.weight", ("q_bias", None, "q_bias"), rows=(6, 9), columns=(1, 3))
    torch.testing.assert_close(cut(x[:, 1:3]), x[:, 1:3] @ holder.inner.weight[6:, 1:3].T + 1)
    assert (cut.out_features, cut.in_features) == (3, 2)
    assert Linear(holder, "inner.weight", (None, "v_bias")).bias is None
    torch.testing.assert_close(packed.pull(packed(x)), packed(x) @ holder.inner.weight)
    half = packed.cast(torch.bfloat16)
    assert half.pull(packed(x)).dtype == torch.bfloat16
    assert half.weight is half.weight and packed.cast(torch.float32) is packed


@pytest.mark.parametrize("name", list(KINDS))
def test_views_follow_their_modules(name: str) -> None:
    view = KINDS[name]()
    pixels, prompts = random_input(view, batch=1, height=16, width=12, prompts=2)
    expected = attribute(view, pixels, prompts)
    for twin in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        torch.testing.assert_close(attribute(twin, pixels, prompts), expected, rtol=0, atol=0)
        for module in modules_of(twin):  # other weights, and nothing of the first view changes
            module.load_state_dict({key: value * 1.5 for key, value in module.state_dict().items()}, assign=True)
        assert not torch.allclose(attribute(twin, pixels, prompts), expected)
        torch.testing.assert_close(attribute(view, pixels, prompts), expected, rtol=0, atol=0)
        for module, other in zip(modules_of(twin), modules_of(view), strict=True):
            module.load_state_dict(other.state_dict(), assign=True)
        torch.testing.assert_close(attribute(twin, pixels, prompts), expected, rtol=0, atol=0)
    moved = to(copy.deepcopy(view), torch.float32)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(attribute(moved, pixels, prompts).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", list_methods())
@pytest.mark.parametrize("name", list(KINDS))
def test_in_inference_mode(name: str, method: str) -> None:
    view = KINDS[name]()
    pixels, prompts = random_input(view, batch=2, height=16, width=12, prompts=2)
    try:
        expected = attribute(view, pixels, prompts, method)
    except UnsupportedModelError:
        assert name != "plain"
        return
    with torch.inference_mode():
        pixels, prompts = pixels * 1, prompts * 1
        assert pixels.is_inference()
        torch.testing.assert_close(attribute(view, pixels, prompts, method), expected, rtol=1e-9, atol=1e-12)


def test_a_view_is_proved() -> None:
    view = random_view()

    def right(pixels: Tensor) -> Tensor:
        return 3 * view.encode(pixels)

    assert check_view(view, right, "small", [(16, 16), (8, 24)]) is view
    for factor in (-1.0, torch.nan):

        def wrong(pixels: Tensor, factor: float = factor) -> Tensor:
            return right(pixels) * (factor if pixels.shape[-1] == 24 else 1)

        with pytest.raises(UnsupportedModelError, match="odd cannot be explained: at 8 x 24 pixels"):
            check_view(view, wrong, "odd", [(16, 16), (8, 24)])


def test_positions_keep_their_precision() -> None:
    torch.manual_seed(0)
    positions = torch.randn(1, 1 + 3 * 4, 6, dtype=torch.float64)
    options: dict[str, Any] = {"num_prefix_tokens": 1, "antialias": True, "native": (3, 4)}
    assert interpolate_positions(positions, (3, 4), **options) is positions
    resized = interpolate_positions(positions, (5, 2), **options)
    expected = F.interpolate(
        positions[:, 1:].view(1, 3, 4, 6).permute(0, 3, 1, 2), (5, 2), mode="bicubic", antialias=True
    )
    assert torch.equal(resized[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 10, 6))
    assert torch.equal(resized[:, :1], positions[:, :1])
    assert interpolate_positions(positions.bfloat16(), (5, 2), **options).dtype == torch.bfloat16
