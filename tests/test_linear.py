"""Matmuls by oneDNN against those by torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine import linear as linear_module
from avgrad.engine.linear import linear


def _number(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.filterwarnings("ignore:TF32")  # said by `torch.backends.mkldnn.flags`
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_agree(enabled: bool, dtype: torch.dtype) -> None:
    straight, tolerance = _number(24, 40), 2e-2 if dtype == torch.bfloat16 else 1e-5
    with torch.backends.mkldnn.flags(enabled=enabled), torch.no_grad():
        for x in (_number(24), _number(0, 24), _number(3, 5, 24), _number(24, 5).T, _number(1, 24).expand(5, 4, 24)):
            for weight in (straight.T.contiguous(), straight.T, _number(40, 72)[:, :24]):
                for bias in (_number(40), None):
                    arguments = [None if t is None else t.to(dtype) for t in (x, weight, bias)]
                    actual = linear(*arguments)  # type: ignore[arg-type]
                    assert actual.dtype == dtype
                    expected = F.linear(*(None if t is None else t.double() for t in arguments))  # type: ignore[arg-type]
                    torch.testing.assert_close(actual, expected.to(dtype), rtol=tolerance, atol=1e-5)


def test_a_private_operator_that_changed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("no such operator")

    def other(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 2 * F.linear(x, weight, bias)

    for changed in (missing, other):
        monkeypatch.setattr(linear_module, "_product", changed)
        assert not linear_module._has_onednn()


def test_gradients_flow() -> None:
    x, weight = _number(3, 24).requires_grad_(), _number(40, 24)
    (gradient,) = torch.autograd.grad(linear(x, weight).sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).expand(3, -1))
    with torch.no_grad():
        assert not linear(x, weight).requires_grad
