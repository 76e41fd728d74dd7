"""Every method in every dtype as a GPU computes it: emulated where there is none, and on a real one (`-m cuda`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_views import attention_pooler, modules_of, random_input, random_view, to
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from avgrad import attribute
from avgrad.engine.methods import get_method, list_methods
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError

VIEWS: dict[str, Callable[[], ViTView]] = {
    "plain": lambda: random_view(layers=2, layer_scale=True),
    "gated": lambda: random_view(
        layers=2, heads=4, norm="rms", activation="silu", extras=("gated", "mlp_norm", "gate", "inner_norm", "qk_norm")
    ),
    "post-norm": lambda: random_view(layers=2, kind="post_norm"),
    "tail": lambda: random_view(layers=2, tail=True),
    "pooler": lambda: replace(random_view(layers=2), pooler=attention_pooler()),
}
WITHOUT_GRAPH = ("legrad", "cosine", "raw_attention", "rollout", "lrp", "lrp_conserving", "partial_lrp", "textspan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def fake(view: ViTView, dtype: torch.dtype, device: str) -> ViTView:
    """The view with weights of no content on a device that need not be there."""
    for root in modules_of(view):
        for module in root.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device))
    return view


def fake_device() -> str:
    """A GPU, unless torch is so old that even tensors of no content on one ask for a driver."""
    try:
        with FakeTensorMode():
            x = torch.empty(1, 2, 3, 4, device="cuda")
            nn.functional.scaled_dot_product_attention(x, x, x).transpose(1, 2).contiguous()
    except RuntimeError:
        return "cpu"
    return "cuda"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in VIEWS if name != "tail"])
@pytest.mark.parametrize("method", WITHOUT_GRAPH)
def test_on_a_fake_gpu(method: str, name: str, dtype: torch.dtype) -> None:
    """Shapes and dtypes as CUDA's kernels give them; autograd's threads need a real GPU."""
    view, device = VIEWS[name](), fake_device()
    with FakeTensorMode():
        view = fake(view, dtype, device)
        pixels, prompts = (torch.empty(*shape, dtype=dtype, device=device) for shape in ((2, 3, 8, 12), (2, 3, 10)))
        for pooling in ("mean", "cls"):
            try:
                maps = get_method(method).function(view, pixels, prompts, [0, 1], pooling)
            except UnsupportedModelError:
                assert name != "plain"
                return
            assert maps.shape[:2] == (2, 3) and maps.shape[-1] == 6
            assert maps.dtype == torch.float32 and maps.device.type == device


class StatisticsOfCuda(TorchDispatchMode):
    """On a CPU, gives float32 statistics of half inputs' LayerNorm, as CUDA does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_layer_norm.default:
            out, mean, rstd = func(*args, **(kwargs or {}))
            return (
                out,
                mean.to(torch.promote_types(mean.dtype, torch.float32)),
                rstd.to(torch.promote_types(rstd.dtype, torch.float32)),
            )
        if func is torch.ops.aten.native_layer_norm_backward.default:
            gradient, x, shape, mean, rstd, *rest = args
            return func(gradient, x, shape, mean.to(x.dtype), rstd.to(x.dtype), *rest, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def agree(method: str, name: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """A method's map in this dtype is that in float64, as far as the dtype goes."""
    view = to(VIEWS[name](), dtype)  # the same rounded numbers for both
    pixels, prompts = random_input(view, batch=2, height=16, width=24, prompts=3)
    prompts = prompts.to(dtype)
    try:
        exact = attribute(to(view, torch.float64), pixels.double(), prompts.double(), method)
    except UnsupportedModelError:
        assert name != "plain"
        return
    view = to(view, device, dtype)
    rough = attribute(view, pixels.to(device), prompts.to(device), method).cpu()
    assert rough.dtype == torch.float32
    if method in ("lrp", "lrp_conserving") and dtype != torch.float32:
        assert torch.isfinite(rough).all()  # rounding the tokens in front of the first block alone moves it further
        return
    error = (rough - exact).abs().mean()
    assert error < (1e-3 if dtype == torch.float32 else 0.1), error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize("method", list_methods())
def test_with_the_statistics_of_cuda(method: str, name: str, dtype: torch.dtype) -> None:
    with StatisticsOfCuda():
        agree(method, name, dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize("method", list_methods())
def test_on_a_gpu(method: str, name: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU by NVIDIA here")
    agree(method, name, dtype, "cuda")
