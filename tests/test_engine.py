"""The closed form against autograd, on models of many shapes, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from random_views import PATCH, WIDTH, Kind, attention_pooler, modules_of, random_input, random_view
from torch import Tensor

from avgrad import attribute
from avgrad.engine import legrad as legrad_module
from avgrad.engine.methods import list_methods, resolve_layers
from avgrad.engine.mlp import Activation, activate, activation_derivative_
from avgrad.errors import UnsupportedModelError


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"layer_scale": True, "activation": "quick_gelu"},
        {"heads": 1, "activation": "gelu_tanh", "bias": False},
        {"heads": 8, "activation": "relu", "affine": False},
        {"prefix": 5, "layers": 1},
        {"head": False},
    ],
    ids=str,
)
def test_closed_form_is_the_gradient(shape: dict[str, Any], pooling: Any) -> None:
    view = random_view(**shape)
    pixels, prompts = random_input(view, batch=2, height=5 * PATCH, width=3 * PATCH, prompts=4)
    expected = attribute(view, pixels, prompts, "legrad_autograd", pooling=pooling, per_layer=True)
    actual = attribute(view, pixels, prompts, "legrad", pooling=pooling, per_layer=True)
    assert actual.shape == (2, 4, len(view.blocks), 5, 3)
    assert expected.amax() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


EXTRAS = [
    ("separate", "qk_norm", "rotary"),
    ("v_norm", "bias", "scale"),
    ("inner_norm", "gated", "mlp_norm"),
    ("gate", "grouped", "softcap", "mlp_norm"),
    ("head_gate", "inner_norm", "head_scale", "bias", "softcap", "separate", "grouped"),
]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("extras", [(), *EXTRAS], ids=str)
@pytest.mark.parametrize("kind", ["pre_norm", "post_norm", "sandwich", "parallel", "parallel_things"])
@torch.no_grad()
def test_closed_form_of_every_kind(kind: Kind, extras: tuple[str, ...], norm: Any, pooling: Any) -> None:
    activation: Activation = "silu" if "gated" in extras else "gelu"
    view = random_view(
        kind=kind, extras=extras, norm=norm, heads=4, layers=2, prefix=2, layer_scale=True, activation=activation
    )
    pixels, prompts = random_input(view, batch=2, height=4 * PATCH, width=3 * PATCH, prompts=3)
    expected = attribute(view, pixels, prompts, "legrad_autograd", pooling=pooling, per_layer=True)
    actual = attribute(view, pixels, prompts, "legrad", pooling=pooling, per_layer=True)
    assert expected.amax() > 0
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)
    # the ways through a block agree with each other
    x, grid = view.embed(pixels), view.grid(pixels)
    for block in view.blocks:
        z = block(x, grid)
        for other in (block.forward(x, grid)[0], block.run(x, *block.attention(x, grid))):
            torch.testing.assert_close(other, z, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(block.run_context(x, block.context(x, grid)), z, rtol=1e-12, atol=1e-12)
        assert block.attention(x, grid, slice(1, 3))[0].shape == (2, block.num_heads, 2, x.shape[1])
        x = z


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean", "mean_all", "cls_mean", "prefix"])
def test_heads_and_pools(pool: Any, tail: bool, pooling: Any) -> None:
    view = random_view(pool=pool, tail=tail, prefix=2, layers=2, patch=(4, 8))
    pixels, prompts = random_input(view, batch=2, height=8, width=24, prompts=3)
    expected = attribute(view, pixels, prompts, "legrad_autograd", pooling=pooling, per_layer=True)
    actual = attribute(view, pixels, prompts, "legrad", pooling=pooling, per_layer=True)
    assert actual.shape == (2, 3, 2, 2, 3)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"own_norms": True, "num_skipped": 1},
        {"queries": 3},
        {"queries": 3, "pool": "mean", "qk_norm": True},
        {"positions": 12, "num_skipped": 1},
    ],
    ids=str,
)
def test_poolers(options: dict[str, Any]) -> None:
    view = random_view(layers=2)
    view = replace(view, pooler=attention_pooler(**options), norm_before_pool="own_norms" not in options)
    pixels, prompts = random_input(view, batch=2, height=4 * PATCH, width=3 * PATCH, prompts=3)
    for layer_cosine in (None, False):
        scored = replace(view, layer_cosine=layer_cosine)
        expected = attribute(scored, pixels, prompts, "legrad_autograd", per_layer=True)
        actual = attribute(scored, pixels, prompts, "legrad", per_layer=True)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


def test_closed_form_without_class_token() -> None:
    view = random_view(prefix=0)
    pixels, prompts = random_input(view, batch=1, height=3 * PATCH, width=7 * PATCH, prompts=2)
    expected = attribute(view, pixels, prompts, "legrad_autograd", per_layer=True)
    torch.testing.assert_close(attribute(view, pixels, prompts, per_layer=True), expected, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match="needs a class token"):
        attribute(view, pixels, prompts, pooling="cls")
    with pytest.raises(UnsupportedModelError, match="needs a class token"):
        attribute(view, pixels, prompts, "raw_attention")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "sigmoid", "identity"])
def test_activation_derivative(activation: Activation) -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(activate(activation, x).sum(), x)
    torch.testing.assert_close(activation_derivative_(activation, x.detach().clone()), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", list_methods())
def test_batches_and_shared_prompts(method: str) -> None:
    view = random_view()
    pixels, prompts = random_input(view, batch=3, height=4 * PATCH, width=4 * PATCH, prompts=5)
    together = attribute(view, pixels, prompts, method)
    assert together.shape == (3, 5, 16, 16)
    assert together.amin() == 0
    assert together.amax() == 1
    one_by_one = [attribute(view, pixels[i : i + 1], prompts[i], method) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-9, atol=1e-12)
    shared = attribute(view, pixels, prompts[0], method)
    repeated = attribute(view, pixels, prompts[:1].expand(3, -1, -1), method)
    torch.testing.assert_close(shared, repeated, rtol=0, atol=0)


def test_chunks_of_prompts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    view = random_view()
    pixels, prompts = random_input(view, batch=2, height=4 * PATCH, width=4 * PATCH, prompts=7)
    whole = attribute(view, pixels, prompts, per_layer=True)
    monkeypatch.setitem(legrad_module.CHUNK_BYTES, "cpu", 1)
    torch.testing.assert_close(attribute(view, pixels, prompts, per_layer=True), whole, rtol=1e-12, atol=1e-15)


def test_layers_sum_up() -> None:
    view = random_view(layers=4)
    pixels, prompts = random_input(view, batch=1, height=4 * PATCH, width=4 * PATCH, prompts=2)
    every = attribute(view, pixels, prompts, per_layer=True)
    for layers in (None, 0, 2, -2, [1], [3, 1], [0, -1]):
        chosen = resolve_layers(layers, 4)
        some = attribute(view, pixels, prompts, layers=layers, per_layer=True)
        torch.testing.assert_close(some, every[:, :, chosen], rtol=1e-12, atol=1e-15)
        raw = attribute(view, pixels, prompts, layers=layers, normalize=False)
        enlarged = torch.nn.functional.interpolate(every[:, :, chosen].sum(2), scale_factor=PATCH, mode="bilinear")
        torch.testing.assert_close(raw, enlarged, rtol=1e-12, atol=1e-15)


def test_baselines_follow_their_definitions() -> None:
    view = random_view()
    pixels, prompts = random_input(view, batch=1, height=2 * PATCH, width=3 * PATCH, prompts=2)
    x = view.embed(pixels)
    for block in view.blocks[:-1]:
        x = block(x, (2, 3))
    q, k, _ = view.blocks[-1].heads(x, (2, 3))
    attention = torch.softmax(q[0] @ k[0].mT / (WIDTH // 3) ** 0.5, -1).mean(0)[0, 1:].view(2, 3)
    raw = attribute(view, pixels, prompts, "raw_attention", per_layer=True)
    torch.testing.assert_close(raw, attention.expand(1, 2, 1, 2, 3))
    patches = view.head(view.blocks[-1](x, (2, 3)))[0, 1:]
    similarity = torch.cosine_similarity(prompts[0][:, None], patches[None], dim=-1).view(1, 2, 1, 2, 3)
    torch.testing.assert_close(attribute(view, pixels, prompts, "cosine", per_layer=True), similarity)


def test_nothing_of_a_graph_is_built() -> None:
    view = random_view()
    assert all(parameter.requires_grad for module in modules_of(view) for parameter in module.parameters())
    pixels, prompts = random_input(view, batch=1, height=8, width=8, prompts=1)
    for method in list_methods():
        assert not attribute(view, pixels, prompts, method).requires_grad


def test_bfloat16_stays_close() -> None:
    pixels, prompts = random_input(random_view(), batch=1, height=32, width=32, prompts=3)
    exact = attribute(random_view(), pixels, prompts)
    rough = attribute(random_view(dtype=torch.bfloat16), pixels, prompts)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.02


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_bfloat16_for_the_backward_part_stays_closer(pooling: Any) -> None:
    view = random_view(dtype=torch.float32)
    pixels, prompts = random_input(view, batch=2, height=48, width=48, prompts=5)
    exact = attribute(view, pixels, prompts, pooling=pooling)
    rough = attribute(view, pixels, prompts, pooling=pooling, backward_dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    error = (rough - exact).abs()
    assert 0 < error.amax() < 0.01


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_records_hold_no_more_than_they_need(pooling: Any) -> None:
    view = random_view()
    pixels, _ = random_input(view, batch=1, height=48, width=48, prompts=1)
    caches: list[Any] = []
    legrad_module.forward(view, pixels, [0, 1, 2], pooling, caches.append)
    for cache in caches:
        tensors = tensors_of(cache)
        assert len(tensors) == 5
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return tensors_of(list(value.values()))
    items = value if isinstance(value, list | tuple) else vars(value).values() if hasattr(value, "__dict__") else []
    return [tensor for item in items for tensor in tensors_of(item)]


def test_wrong_arguments_are_said() -> None:
    view = random_view()
    pixels, prompts = random_input(view, batch=2, height=8, width=8, prompts=3)
    for wrong, message in [
        ({"pixels": pixels[0]}, r"pixels are \[3, 8, 8\]"),
        ({"pixels": pixels[..., :6]}, "multiples of 4"),
        ({"prompts": prompts[:1]}, "B = 2"),
        ({"prompts": prompts[..., :3]}, "D = 10"),
        ({"prompts": prompts[:, :0]}, "P >= 1"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"layers": 3}, "layers 0 to 2"),
        ({"layers": -4}, "layers 0 to 2"),
        ({"layers": [0, 7]}, "no layer 7"),
        ({"layers": []}, "at least one layer"),
        ({"backward_dtype": torch.float16}, "backward_dtype=torch.float16 is neither None nor torch.bfloat16"),
        ({"method": "rollout", "backward_dtype": torch.bfloat16}, "'rollout' has no option 'backward_dtype'"),
    ]:
        with pytest.raises(ValueError, match=message):
            attribute(**{"model": view, "pixels": pixels, "prompts": prompts, **wrong})
