"""Parts of a block hold the module that owns their weights, and read them whenever they are used.

So a model can be moved, copied, pickled or given other weights, and its view stays right. What a part computes is the
plain layer's formula; a module that computes something else (LoRA, quantized layers, hooks) is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from avgrad.engine.linear import linear
from avgrad.errors import UnsupportedModelError

AnyPart = TypeVar("AnyPart", bound="Part")

# Modules whose forward pass is the plain formula of the part that reads them; adapters add their library's own types.
_PLAIN: set[type] = {nn.Linear, NonDynamicallyQuantizableLinear, nn.MultiheadAttention, nn.LayerNorm, nn.RMSNorm}


def accept_types(*types: type) -> None:
    """Lets parts read their weights from modules of exactly these types, whose formula the adapter has checked."""
    _PLAIN.update(types)


def check_unmodified(module: nn.Module, harmless: Sequence[str] = ()) -> None:
    """Refuses a module whose forward pass was changed from outside.

    Args:
        module: the owner of a weight, or any layer of a model.
        harmless: names of Python modules whose hooks change nothing.

    Raises:
        UnsupportedModelError: it has hooks, parametrizations or a forward method of its own.
    """
    name = type(module).__name__
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(getattr(hook, "__module__", None) not in harmless for hook in hooks):
        raise UnsupportedModelError(f"a {name} has forward hooks, which a view would leave out")
    if parametrize.is_parametrized(module):
        raise UnsupportedModelError(f"a {name} is parametrized (torch.nn.utils.parametrize); remove that first")
    if "forward" in vars(module):
        raise UnsupportedModelError(f"the forward method of a {name} was replaced, which a view would leave out")


def check_plain(module: nn.Module, expected: str) -> None:
    """Refuses a module that may compute something else than the plain layer.

    Args:
        module: the owner of a weight.
        expected: what is expected in its place, for the error.

    Raises:
        UnsupportedModelError: its formula is not known (see `accept_types`), or it was changed from outside.
    """
    if type(module) not in _PLAIN:
        raise UnsupportedModelError(
            f"a {type(module).__name__} stands where {expected} is expected (merge LoRA layers, and convert quantized "
            "ones, first)"
        )
    check_unmodified(module)


def resolve(module: nn.Module, path: str) -> tuple[nn.Module, Any]:
    """The module that owns a dotted name, and what the name stands for."""
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
    return module, getattr(module, name, None)


class Part:
    """A part of a block. Its attributes are modules, numbers and further parts."""

    def cast(self: AnyPart, dtype: torch.dtype) -> AnyPart:
        """This part, or, where its weights have another dtype, a short-lived copy whose matrices are in `dtype`."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Part):
                setattr(other, name, value.cast(dtype))
            elif isinstance(value, tuple | list) and any(isinstance(item, Part) for item in value):
                setattr(other, name, [item.cast(dtype) for item in value])
        return other


class Weight(Part):
    """A tensor of a module: a LayerScale factor, a learned query.

    Args:
        module: the module that owns it, or a parent of that.
        name: its name there; dots lead through children.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        owner, tensor = resolve(module, name)
        if not isinstance(tensor, Tensor):
            raise UnsupportedModelError(f"a {type(owner).__name__} has no tensor {name!r}")
        check_unmodified(owner)
        self.module, self.name = module, name

    def __call__(self) -> Tensor:
        tensor: Tensor = resolve(self.module, self.name)[1]
        return tensor


class Linear(Part):
    """An affine map, `x @ weight.T + bias`.

    Args:
        module: the module that owns the weight, or a parent of that.
        weight: the weight's name there, `[out, in]`; dots lead through children.
        bias: the bias's name, None for none, or names whose tensors are put one behind the other (None among them
            stands for zeros). A name that stands for None means no bias.
        rows: the outputs that this map gives, as (start, stop), where the weight holds several maps; a bias for all
            outputs is cut likewise.
        columns: the same for the inputs.
        transposed: the weight is stored as `[in, out]`.
        bias_rows: the same as `rows` for the bias alone, where it holds those of several weights.

    Raises:
        UnsupportedModelError: the weight's owner is of a type whose formula is not known, was changed from outside, or
            keeps its weight in another form than a plain floating-point tensor.
    """

    def __init__(
        self,
        module: nn.Module,
        weight: str = "weight",
        bias: str | Sequence[str | None] | None = "bias",
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        transposed: bool = False,
        bias_rows: tuple[int, int] | None = None,
    ) -> None:
        owner, tensor = resolve(module, weight)
        check_plain(owner, "a plain linear layer")
        plain = type(tensor) in (Tensor, nn.Parameter) or isinstance(tensor, FakeTensor)
        if not plain or not tensor.is_floating_point() or tensor.ndim != 2:
            raise UnsupportedModelError(
                f"the {weight} of a {type(owner).__name__} is not a plain floating-point matrix"
            )
        self.module, self.weight_name, self.bias_name = module, weight, bias
        self.rows, self.columns, self.transposed, self.bias_rows = rows, columns, transposed, bias_rows

    @property
    def weight(self) -> Tensor:
        """`[out, in]`, read anew."""
        weight: Tensor = resolve(self.module, self.weight_name)[1]
        weight = weight.T if self.transposed else weight
        weight = weight if self.rows is None else weight[slice(*self.rows)]
        return weight if self.columns is None else weight[:, slice(*self.columns)]

    @property
    def bias(self) -> Tensor | None:
        """`[out]`, read anew, or None."""
        if self.bias_name is None:
            return None
        bias: Tensor | None
        if isinstance(self.bias_name, str):
            bias = resolve(self.module, self.bias_name)[1]
        else:
            pieces = [None if name is None else resolve(self.module, name)[1] for name in self.bias_name]
            known = [piece for piece in pieces if piece is not None]
            if not known:
                return None
            bias = torch.cat([torch.zeros_like(known[0]) if piece is None else piece for piece in pieces])
        rows = self.rows if self.bias_rows is None else self.bias_rows
        if bias is None or rows is None or len(bias) == rows[1] - rows[0]:
            return bias
        return bias[slice(*rows)]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., out]` from `[..., in]`."""
        return linear(x, self.weight, self.bias)

    def pull(self, g: Tensor) -> Tensor:
        """The gradient of the input, `[..., in]`, from that of the output, `[..., out]`, in the weight's dtype."""
        weight = self.weight
        return linear(g.to(weight.dtype), weight.T)

    def cast(self, dtype: torch.dtype) -> Linear:
        return self if self.weight.dtype == dtype else _CastLinear(self, dtype)


class _CastLinear(Linear):
    """A linear map whose weight is converted to another dtype once, when it is first used."""

    def __init__(self, original: Linear, dtype: torch.dtype) -> None:
        self._original, self._dtype = original, dtype

    @cached_property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self._original.weight.to(self._dtype)

    @property
    def bias(self) -> Tensor | None:
        bias = self._original.bias
        return None if bias is None else bias.to(self._dtype)
