"""The view of a vision transformer that was built elsewhere: `avgrad.view`.

A family of modules registers itself with `@views` in a file of this folder, under the qualified names of the classes
that it knows, so that no library is imported before a module of it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from avgrad.engine.parts import check_unmodified
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError
from avgrad.models.registry import families

Build = Callable[[Any, str], ViTView]

BUILDERS: dict[str, Build] = {}  # by qualified name of the module's class
# Hooks of these modules read what a layer gives and change nothing.
HARMLESS_HOOKS = ("transformers.utils.output_capturing",)


def views(*classes: str) -> Callable[[Build], Build]:
    """Registers a function that makes the view of modules of some classes.

    The function takes a module and its name for errors, and returns a view that it has proved with `check_view`, or
    raises UnsupportedModelError with what is not known; parts do not know the model's name, and `build_view` adds it.

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
    return build_view(module, name)


def build_view(module: nn.Module, name: str) -> ViTView:
    """The same for a model that `avgrad.load` gives.

    Args:
        module: the model or its image tower.
        name: what errors call it.

    Raises:
        UnsupportedModelError: as `view`.
    """
    build = find_builder(type(module))
    if build is None:
        raise UnsupportedModelError(f"{name} cannot be explained: {_unknown(type(module))}")
    try:
        return build(module, name)
    except UnsupportedModelError as error:
        if "cannot be explained" in str(error):
            raise
        raise UnsupportedModelError(f"{name} cannot be explained: {error}") from None
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{name} cannot be explained: this release of its library builds it otherwise ({error})"
        ) from error


def find_builder(cls: type) -> Build | None:
    """The function registered for a class of modules; None for none."""
    if _qualified(cls) not in BUILDERS:
        families()  # imports every file of this folder
    return BUILDERS.get(_qualified(cls))


def _unknown(cls: type) -> str:
    parent = next((base for base in cls.__mro__ if _qualified(base) in BUILDERS), None)
    if parent is not None:
        return f"it is a subclass of {parent.__name__}, and what that changes is not known"
    library = cls.__module__.partition(".")[0]
    known = sorted({name.rpartition(".")[2] for name in BUILDERS if name.startswith(f"{library}.")})
    expected = f"one of {library}'s {', '.join(known)}" if known else "a model of timm, open_clip or transformers"
    return f"it is a {cls.__name__}, and {expected} is expected"


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def check_unwrapped(*towers: nn.Module | None) -> None:
    """Refuses a module whose layers do something else than their classes say: hooks, a replaced `forward`,
    parametrizations, quantized or sharded weights, weights of several dtypes.

    Args:
        *towers: the image tower, and what it needs besides.

    Raises:
        UnsupportedModelError: naming the layer.
    """
    dtypes: set[torch.dtype] = set()
    for tower in towers:
        for path, layer in [] if tower is None else tower.named_modules():
            try:
                _check_layer(layer)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"its layer {path!r}: {error}" if path else str(error)) from None
            dtypes.update(weight.dtype for weight in layer.parameters(recurse=False))
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UnsupportedModelError(f"its weights are of several dtypes ({names}); module.to(dtype) gives one")


def _check_layer(layer: nn.Module) -> None:
    check_unmodified(layer, HARMLESS_HOOKS)
    for key, weight in layer.named_parameters(recurse=False):
        plain = type(weight) is nn.Parameter and weight.layout == torch.strided
        if not plain or not weight.is_floating_point():
            raise UnsupportedModelError(f"the {key} of a {type(layer).__name__} is no dense floating-point parameter")
