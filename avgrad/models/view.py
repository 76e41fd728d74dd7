"""The view of a vision transformer that the user built himself: `avgrad.view`.

A family of modules registers itself with `@views` in a file of this folder, under the qualified names of the classes
that it knows, so that no library is imported before a module of it is given.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError

Build = Callable[[nn.Module, str], ViTView]

BUILDERS: dict[str, Build] = {}  # by qualified name of the module's class
# Hooks of these modules read what a layer gives and change nothing.
HARMLESS_HOOKS = ("transformers.utils.output_capturing",)


def views(*classes: str) -> Callable[[Build], Build]:
    """Registers a function that makes the view of modules of some classes.

    The function takes a module and its name for errors, and returns a view that was held against the module's own
    embedding, or raises UnsupportedModelError.

    Args:
        *classes: qualified names, such as "timm.models.vision_transformer.VisionTransformer". Subclasses are not
            meant: what they change is not known.
    """

    def register(build: Build) -> Build:
        for name in classes:
            BUILDERS[name] = build
        return build

    return register


def view(module: nn.Module) -> ViTView:
    """The view of a vision transformer of timm, open_clip or transformers, for `avgrad.attribute`.

    Args:
        module: a model or an image tower of one of these libraries, as the library built it and in eval mode.

    Returns:
        A view that reads the module's own weights whenever it is used; `encode(pixels)` is the module's own image
        embedding at unit length: what a CLIP model compares with texts, what a classifier's last layer reads, what a
        model without a classifier pools.

    Raises:
        UnsupportedModelError: the module is of no class that is known here; or a part of it cannot be expressed, is
            wrapped (LoRA, quantization, parametrizations, hooks), or gives another embedding than the view.
    """
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(f"module is a {type(module).__name__}; a torch.nn.Module is expected")
    name = type(module).__name__
    if module.training:
        raise UnsupportedModelError(f"{name} is in training mode; call its eval() first")
    return builder(module)(module, name)


def builder(module: nn.Module) -> Build:
    """The registered function that makes the view of a module.

    Raises:
        UnsupportedModelError: none is registered for its class.
    """
    import avgrad.models

    qualified = _qualified(type(module))
    library = qualified.partition(".")[0]
    if qualified not in BUILDERS:
        for found in pkgutil.iter_modules(avgrad.models.__path__):
            if not found.ispkg:
                import_module(f"avgrad.models.{found.name}")
    if qualified in BUILDERS:
        return BUILDERS[qualified]
    known = sorted(name.rpartition(".")[2] for name in BUILDERS if name.startswith(f"{library}."))
    expected = f"{library}'s {', '.join(known)}" if known else "a model of timm, open_clip or transformers"
    parent = next((base for base in type(module).__mro__ if _qualified(base) in BUILDERS), None)
    what = f"a subclass of {parent.__name__}, and what it changes is not known" if parent else "not known"
    raise UnsupportedModelError(
        f"{type(module).__name__} cannot be explained: it is {what}; {expected} is expected"
    )


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def check_unwrapped(module: nn.Module, name: str) -> None:
    """Refuses a module whose layers do something else than their classes say: hooks, a replaced `forward`,
    parametrizations, quantized or sharded weights, weights of several dtypes.

    Args:
        module: the image tower.
        name: of the model, for errors.

    Raises:
        UnsupportedModelError: naming the layer.
    """
    for path, layer in module.named_modules():
        where = f"{path} ({type(layer).__name__})" if path else type(layer).__name__
        found = None
        hooks = [*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()]
        if any(getattr(hook, "__module__", None) not in HARMLESS_HOOKS for hook in hooks):
            found = "has a hook"
        elif "forward" in vars(layer):
            found = "has a replaced forward"
        elif hasattr(layer, "parametrizations"):
            found = "is parametrized"
        for key, weight in layer.named_parameters(recurse=False):
            if type(weight) is not nn.Parameter or not weight.is_floating_point():
                found = f"has a {key} that is no plain floating-point parameter"
        if found:
            raise UnsupportedModelError(f"{name} cannot be explained: its layer {where} {found}")
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in module.parameters()})
    if len(dtypes) > 1:
        raise UnsupportedModelError(
            f"{name} cannot be explained: its weights are of several dtypes ({', '.join(dtypes)}); one is expected, as "
            "`module.to(dtype)` gives"
        )


def small_image(height: int, width: int, like: Tensor) -> Tensor:
    """Pixels `[1, 3, height, width]` of a random image, the same at each call, on a weight's device and in its dtype."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, height, width, generator=generator).to(like.device, like.dtype)
