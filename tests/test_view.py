"""`avgrad.view`: which modules it takes, what it refuses, and that a view follows its module."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import open_clip_small
import pytest
import timm
import torch
from library_oracle_clip import shaken
from torch import Tensor, nn

import avgrad
from avgrad import UnsupportedModelError, attribute

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


class LoRA(nn.Linear):
    """Looks like a linear layer, and adds something of its own."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__(original.in_features, original.out_features)
        self.load_state_dict(original.state_dict())
        self.down = nn.Parameter(torch.randn(2, original.in_features))
        self.up = nn.Parameter(torch.randn(original.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Packed(Tensor):
    """A weight that is kept in another form, as torchao's quantized ones are."""


def _timm() -> tuple[Any, Callable[[Any, Tensor], Tensor], str]:
    def own(model: Any, pixels: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(pixels), pre_logits=True)

    return shaken(timm.create_model("vit_tiny_patch16_224", **SIZE)), own, "blocks.1.mlp.fc1"


def _open_clip() -> tuple[Any, Callable[[Any, Tensor], Tensor], str]:
    return open_clip_small.own_tower().visual, lambda visual, pixels: visual(pixels), "transformer.resblocks.1.mlp.c_fc"


def _transformers() -> tuple[Any, Callable[[Any, Tensor], Tensor], str]:
    pytest.importorskip("transformers")
    from huggingface_small import SMALL

    def own(model: Any, pixels: Tensor) -> Tensor:
        return model.get_image_features(pixels).pooler_output

    return SMALL["CLIP"]().model, own, "vision_model.encoder.layers.1.mlp.fc1"


LIBRARIES = {"timm": _timm, "open_clip": _open_clip, "transformers": _transformers}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> tuple[Any, Callable[[Any, Tensor], Tensor], str]:
    """A module of a library, its own embedding of pixels, and the name of one of its linear layers."""
    return LIBRARIES[request.param]()


def _replace(module: nn.Module, name: str, change: Callable[[Any], nn.Module]) -> None:
    parent, _, key = name.rpartition(".")
    setattr(module.get_submodule(parent), key, change(module.get_submodule(name)))


def test_a_view_follows_its_module(library: tuple[Any, Callable[[Any, Tensor], Tensor], str]) -> None:
    module, own, layer = library
    view = avgrad.view(module)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def check(view: Any, module: Any, tolerance: float = 1e-10) -> None:
        with torch.no_grad():
            expected = nn.functional.normalize(own(module, pixels.to(view.dtype)), dim=-1)
        torch.testing.assert_close(view.encode(pixels.to(view.dtype)), expected, rtol=0, atol=tolerance)

    check(view, module)
    weights = {key: value + 0.1 * torch.randn_like(value) for key, value in module.state_dict().items()}
    module.load_state_dict(weights, assign=True)
    check(view, module)
    module.get_submodule(layer).weight = nn.Parameter(torch.randn_like(module.get_submodule(layer).weight) * 0.1)
    check(view, module)
    for copied_view, copied in (copy.deepcopy((view, module)), pickle.loads(pickle.dumps((view, module)))):
        copied.get_submodule(layer).weight.data.mul_(1.5)
        check(copied_view, copied)
    check(view, module)
    module.to(torch.bfloat16)
    assert view.dtype == torch.bfloat16
    check(view, module, 0.05)
    module.to(torch.float32)
    prompts = torch.randn(2, view.embed_dim)
    assert attribute(view, pixels.float(), prompts).shape == (2, 2, 32, 32)


@pytest.mark.parametrize(
    "change", ["lora", "hook", "pre-hook", "parametrized", "replaced", "dtypes", "quantized", "sparse"]
)
def test_wrapped_layers_are_refused(library: tuple[Any, Callable[[Any, Tensor], Tensor], str], change: str) -> None:
    module, _, name = library
    layer = module.get_submodule(name)
    if change == "lora":
        _replace(module, name, lambda layer: LoRA(layer).double())
    elif change == "hook":
        layer.register_forward_hook(lambda *_: None)
    elif change == "pre-hook":
        layer.register_forward_pre_hook(lambda *_: None)
    elif change == "parametrized":
        nn.utils.parametrizations.weight_norm(layer)
    elif change == "replaced":
        layer.forward = lambda x: nn.functional.linear(x, layer.weight)
    elif change == "dtypes":
        layer.float()
    elif change == "quantized":
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed))
    else:
        layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    with pytest.raises(UnsupportedModelError, match=f"^{type(module).__name__} cannot be explained: "):
        avgrad.view(module)


@pytest.mark.parametrize("name", ["open_clip", "transformers"])
def test_the_proof(name: str) -> None:
    """What no part of a view reads is changed in the library's module."""
    module, _, _ = LIBRARIES[name]()
    if name == "open_clip":
        module.patch_dropout = nn.Linear(32, 32).double()
    else:
        module.vision_model.encoder.layers[0].self_attn.scale *= 2
    with pytest.raises(UnsupportedModelError, match="its own image embedding differs"):
        avgrad.view(module)


def test_the_librarys_own_hooks_are_harmless() -> None:
    module, own, _ = _transformers()
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    module.vision_model(pixels, output_attentions=True, output_hidden_states=True)
    assert any(layer._forward_hooks for layer in module.modules())
    with torch.no_grad():
        expected = nn.functional.normalize(own(module, pixels), dim=-1)
    torch.testing.assert_close(avgrad.view(module).encode(pixels), expected, rtol=0, atol=1e-10)


def test_modules_that_are_not_known() -> None:
    with pytest.raises(UnsupportedModelError, match=r"module is a str; a torch\.nn\.Module is expected"):
        avgrad.view("ViT-B-16")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="Linear cannot be explained: it is a Linear, and a model of timm"):
        avgrad.view(nn.Linear(2, 2).eval())
    with pytest.raises(UnsupportedModelError, match=r"VisionTransformer is in training mode; call its eval\(\) first"):
        avgrad.view(open_clip_small.own_tower().visual.train())
    with pytest.raises(UnsupportedModelError, match=r"it is a ResNet, and one of timm's .*VisionTransformer"):
        avgrad.view(timm.create_model("resnet18").eval())

    class Mine(timm.models.vision_transformer.VisionTransformer):
        pass

    with pytest.raises(UnsupportedModelError, match="Mine cannot be explained: it is a subclass of VisionTransformer"):
        avgrad.view(Mine(depth=1, embed_dim=24, num_heads=2).eval())
