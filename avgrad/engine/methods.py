"""The attribution methods by name. Each registers itself with `@method`, in a file of this folder."""

from __future__ import annotations

import inspect
import math
import operator
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from avgrad.engine.view import ViTView
from avgrad.errors import InputError

Pooling = Literal["mean", "cls"]
Function = TypeVar("Function", bound=Callable[..., Tensor])
# (view, layers asked for, the method's options) -> the layers that are explained
Explains = Callable[[ViTView, Sequence[int], Mapping[str, Any]], list[int]]


def last_layer(view: ViTView, layers: Sequence[int], options: Mapping[str, Any]) -> list[int]:
    """For methods that look at one layer: the last of those asked for."""
    return [max(layers)]


@dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        name: what users call it.
        function: `(view, pixels [B, 3, h, w], prompts [B, P, D], layers, pooling, **options) -> [B, P, L, patches]`,
            raw maps, at least float32; the method's map is their sum over L.
        corrected: whether a map of the empty prompt corrects its maps (models that pool by attention).
        explains: which of the layers asked for the maps are of; None for all.
        prepare: `(view, pixels, layers, pooling, **options) -> (caches, embedding [B, D])`, the part of the function
            that does not depend on the prompts; None where there is no such part.
        explain: `(view, caches, prompts, **options) -> [B, P, L, patches]`, the part that does.
        once: the function's arguments -> its maps and the image embeddings `[B, D]`, where one forward pass gives both.
    """

    name: str
    function: Callable[..., Tensor]
    corrected: bool = False
    explains: Explains | None = None
    prepare: Callable[..., tuple[Any, Tensor]] | None = None
    explain: Callable[..., Tensor] | None = None
    once: Callable[..., tuple[Tensor, Tensor]] | None = None

    @cached_property
    def options(self) -> dict[str, Any]:
        """The method's own options and their defaults: the keyword-only arguments of its function."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def layers(self, view: ViTView, layers: Sequence[int], options: Mapping[str, Any]) -> list[int]:
        """The layers that are really explained, of those asked for."""
        return sorted(layers) if self.explains is None else self.explains(view, layers, {**self.options, **options})


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    corrected: bool = False,
    explains: Explains | None = None,
    prepare: Callable[..., tuple[Any, Tensor]] | None = None,
    explain: Callable[..., Tensor] | None = None,
    once: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> Callable[[Function], Function]:
    """Registers a function as an attribution method; the arguments are those of `Method`."""

    def register(function: Function) -> Function:
        METHODS[name] = Method(name, function, corrected, explains, prepare, explain, once)
        return function

    return register


@cache
def register_all() -> None:
    """Imports the files of this folder, whose methods register themselves: LeGrad first, the others by name."""
    import avgrad.engine

    names = [module.name for module in pkgutil.iter_modules(avgrad.engine.__path__)]
    for name in sorted(names, key=lambda name: (not name.startswith("legrad"), name)):
        import_module(f"avgrad.engine.{name}")


def list_methods() -> list[str]:
    """Names of all attribution methods; "legrad" is the first."""
    register_all()
    return list(METHODS)


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        register_all()
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuses options that a method does not have, or not with such a value.

    Raises:
        InputError: there is one.
    """
    known = get_method(name).options
    for option, value in options.items():
        if option not in known:
            raise InputError(f"method {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}")
        if isinstance(known[option], bool) and not isinstance(value, bool):
            raise InputError(f"{option}={value!r} is not True or False")
        if isinstance(known[option], float) and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise InputError(f"{option}={value!r} is not a positive number")
    if options.get("backward_dtype") not in (None, torch.bfloat16):
        raise InputError(f"backward_dtype={options['backward_dtype']} is neither None nor torch.bfloat16")


def parse_option(name: str, text: str) -> tuple[str, Any]:
    """A method's option written as text, `option=value`; the value is of the type of the option's default.

    Args:
        name: of the method.
        text: such as "relu=false" or "backward_dtype=bfloat16"; "none" is None.

    Raises:
        InputError: the method has no such option, or the value is of another type.

    >>> parse_option("legrad", "relu=false")
    ('relu', False)
    """
    option, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise InputError(f"option {text!r} is not of the form name=value, such as relu=false")
    known = get_method(name).options
    if option not in known:
        raise InputError(f"method {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}")
    default = known[option]
    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if value.lower() not in words:
            raise InputError(f"option {text!r}: {value!r} is not true or false")
        return option, words[value.lower()]
    if isinstance(default, int | float):
        try:
            return option, type(default)(value)
        except ValueError:
            raise InputError(f"option {text!r}: {value!r} is not a number") from None
    if value.lower() == "none":
        return option, None
    dtype = getattr(torch, value, None)
    return option, dtype if isinstance(dtype, torch.dtype) else value


# ------------------------------------------------------------------ layers and pooling


def parse_layers(text: str) -> int | list[int] | None:
    """A `layers` argument written as text: "all", "4" (from layer 4), "-2" (the last two) or "3,5,7" (these).

    Raises:
        InputError: anything else.

    >>> parse_layers("all"), parse_layers("-2"), parse_layers("3,5"), parse_layers("3,")
    (None, -2, [3, 5], [3])
    """
    if text.strip() == "all":
        return None
    try:
        numbers = [int(part) for part in text.rstrip(",").split(",")]
    except ValueError:
        raise InputError(f"layers {text!r} is neither 'all', a number nor a list of numbers such as 3,5,7") from None
    return numbers[0] if "," not in text else numbers


def resolve_layers(layers: int | Sequence[int] | None, num_layers: int) -> list[int]:
    """The layer numbers that a `layers` argument means, ascending.

    Args:
        layers: None for all, an int k >= 0 for "from layer k", a negative one for "the last -k", a list for exactly
            those (negative numbers count from the end). Integers of numpy are integers.
        num_layers: how many the model has.

    Raises:
        InputError: a layer that does not exist, no layer at all, or something else than integers.

    >>> resolve_layers(None, 4), resolve_layers(1, 4), resolve_layers(-2, 4), resolve_layers([3, 0], 4)
    ([0, 1, 2, 3], [1, 2, 3], [2, 3], [0, 3])
    """
    numbers = range(num_layers)
    if layers is None:
        return list(numbers)
    try:
        first = operator.index(layers)  # type: ignore[arg-type]
    except TypeError:
        try:
            wanted = [operator.index(layer) for layer in layers]  # type: ignore[union-attr]
        except TypeError:
            raise InputError(f"layers={layers!r} is not None, an integer or a list of integers") from None
    else:
        if not -num_layers <= first < num_layers:
            raise InputError(f"layers={first} is out of range: the model has layers 0 to {num_layers - 1}")
        return list(numbers[first:])
    wrong = [layer for layer in wanted if not -num_layers <= layer < num_layers]
    if wrong or not wanted:
        what = f"has no layer {wrong[0]}" if wrong else "needs at least one layer"
        raise InputError(f"layers={wanted} {what}: the model has layers 0 to {num_layers - 1}")
    return sorted({numbers[layer] for layer in wanted})


def check_pooling(pooling: str, view: ViTView) -> None:
    """Refuses what the model cannot pool by.

    Raises:
        InputError: an unknown pooling, or the class token's for a model that has none.
    """
    if pooling not in ("mean", "cls"):
        raise InputError(f"unknown pooling {pooling!r}; expected 'mean' or 'cls'")
    if pooling == "cls" and view.num_prefix_tokens < 1:
        raise InputError("pooling='cls' needs a class token, and this model has none; use pooling='mean'")
