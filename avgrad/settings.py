"""What heatmaps depend on besides prompts: settings, and the image that was set."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avgrad.engine.attribute import Correction, Prepared, prepare, resolve_correction
from avgrad.engine.methods import Pooling, check_options, check_pooling, resolve_layers
from avgrad.engine.view import ViTView
from avgrad.errors import InputError
from avgrad.models.model import Model

if TYPE_CHECKING:
    from PIL import Image

Layers = int | Sequence[int] | None


@dataclass(frozen=True, eq=False)
class Settings:
    """Method, layers and options, checked against a model.

    Attributes:
        model: explained by them; its view is read when it is used, so that it may be moved.
        method: name of the attribution method.
        layers: the layers asked for.
        pooling: "mean" or "cls".
        correction: the threshold; None for no correction.
        options: the method's own.
    """

    model: Model
    method: str
    layers: list[int]
    pooling: Pooling
    correction: float | None
    options: Mapping[str, Any]

    @classmethod
    def checked(
        cls,
        model: Model,
        method: str,
        layers: Layers,
        pooling: Pooling,
        correction: Correction,
        options: Mapping[str, Any],
    ) -> Settings:
        """The settings that arguments mean; they are those of `avgrad.attribute`.

        Raises:
            InputError: a wrong argument.
        """
        view = model.vision
        check_options(method, options)
        check_pooling(pooling, view)
        numbers = resolve_layers(layers, len(view.blocks))
        return cls(model, method, numbers, pooling, resolve_correction(correction, view, method), options)

    def changed(
        self,
        method: str | None,
        layers: Layers | EllipsisType,
        pooling: Pooling | None,
        correction: Correction | EllipsisType,
        options: Mapping[str, Any],
    ) -> Settings:
        """The settings of one call. Of another method, the options and the correction are its own.

        Args:
            method, pooling: None for the same.
            layers, correction: `...` for the same.
            options: further options, or other values of these.

        Raises:
            InputError: a wrong argument.
        """
        same = method is None or method == self.method
        threshold: Correction = self.correction if same else "default"
        return Settings.checked(
            self.model,
            self.method if method is None else method,
            self.layers if isinstance(layers, EllipsisType) else layers,
            pooling or self.pooling,
            threshold if isinstance(correction, EllipsisType) else correction,
            {**self.options, **options} if same else options,
        )

    def share_pass(self, other: Settings) -> bool:
        """Whether one forward pass serves both."""
        names = ("method", "layers", "pooling", "options")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def prepare(self, pixels: Tensor, keep: bool, view: ViTView | None = None) -> Prepared:
        """The forward pass over pixels `[B, 3, h, w]`, by the model's own view or another of it; see
        `avgrad.engine.attribute.prepare`."""
        return prepare(view or self.model, pixels, self.method, self.layers, self.pooling, keep=keep, **self.options)


@dataclass(frozen=True, eq=False)
class SetImage:
    """An image that was set. It is never changed, so threads may share it.

    Attributes:
        image: the image.
        name: its file's name; empty where it has none.
        pixels: `[1, 3, h, w]`.
        prepared: the forward pass.
        place: device and dtype of the model at that time.
        seconds: what it took.
    """

    image: Image.Image
    name: str
    pixels: Tensor
    prepared: Prepared
    place: tuple[torch.device, torch.dtype]
    seconds: float


def at_least(name: str, value: int, least: int = 1) -> int:
    """An integer that is not below `least`.

    Raises:
        InputError: it is, or is no integer; the message calls it `name`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(f"{name}={value!r} is not an integer of at least {least}")
    return number
