"""Relevance propagation against a slow version: each rule by autograd, one image and one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_views import PATCH, random_input, random_view, to
from slow_transformer import PLAIN, Slow, affine, compare, grad, layer_norm
from torch import Tensor

from avgrad import attribute
from avgrad.engine import lrp as lrp_module
from avgrad.engine.mlp import activate
from avgrad.engine.view import ViTView


def by_gradient(operation: Callable[..., Tensor], inputs: list[Tensor], relevance: Tensor) -> list[Tensor]:
    """`u * (du of the output)^T (R / output)` for each input u (Chefer et al. 2020, Eqs. 3 and 7)."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output = operation(*leaves)
        found = torch.autograd.grad(output, leaves, relevance / output.detach())
    return [leaf.detach() * gradient for leaf, gradient in zip(leaves, found, strict=True)]


def linear(x: Tensor, weight: Tensor, relevance: Tensor, conserving: bool) -> Tensor:
    """Eq. 4: only positive contributions; those of positive and negative inputs together, or each by themselves."""
    result = torch.zeros_like(x)
    for i in range(len(x)):
        contributions = (x[i].detach()[None] * weight).clamp_min(0)  # [out, in]
        positive = x[i].detach() > 0
        for chosen in [torch.ones_like(positive)] if conserving else [positive, ~positive]:
            part = contributions * chosen
            shares = (part / part.sum(-1, keepdim=True)).nan_to_num(0)  # no contribution, no relevance
            result[i] += (shares * relevance[i][:, None]).sum(0)
    return result


def added(a: Tensor, b: Tensor, relevance: Tensor, conserving: bool) -> tuple[Tensor, Tensor]:
    """Eqs. 8 to 10 for a sum, or its shares as they come."""
    of_a, of_b = by_gradient(torch.add, [a, b], relevance)
    if not conserving:
        return of_a, of_b
    weight = of_a.sum().abs() + of_b.sum().abs()
    return (
        of_a * of_a.sum().abs() / weight * relevance.sum() / of_a.sum(),
        of_b * of_b.sum().abs() / weight * relevance.sum() / of_b.sum(),
    )


def multiplied(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 8 to 10 for a matrix product, whose two inputs weigh the same."""
    of_a, of_b = by_gradient(torch.matmul, [a, b], relevance)
    weight = of_a.sum().abs() + of_b.sum().abs()
    return (
        of_a * of_a.sum().abs() / weight * relevance.sum() / of_a.sum(),
        of_b * of_b.sum().abs() / weight * relevance.sum() / of_b.sum(),
    )


def slow_propagation(slow: Slow, prompt: Tensor, conserving: bool) -> tuple[Tensor, list[list[Tensor]]]:
    """Relevance of the first block's input `[n, d]`, and of each layer's and head's attention."""
    view, head, start = slow.view, slow.view.head, slow.view.num_prefix_tokens
    weight = prompt @ head.projection.weight if head.projection else prompt

    def norm(x: Tensor) -> Tensor:
        return x if head.norm is None else layer_norm(head.norm, x)

    relevance = torch.zeros_like(slow.x)
    if view.pool == "cls":
        relevance[0] = linear(norm(slow.x[:1]), weight[None], torch.ones(1, 1, dtype=torch.float64), conserving)[0]
    else:
        tokens = norm(slow.x[start:]) if view.norm_before_pool else slow.x[start:]
        pooled = tokens.mean(0) if view.norm_before_pool else norm(tokens.mean(0))
        of_pooled = linear(pooled[None], weight[None], torch.ones(1, 1, dtype=torch.float64), conserving)[0]
        (relevance[start:],) = by_gradient(lambda t: t.mean(0), [tokens], of_pooled)
    of_attention: list[list[Tensor]] = []
    for layer in range(len(view.blocks) - 1, -1, -1):
        block, x = view.blocks[layer], slow.inputs[layer]
        attended, changed = slow.added[layer]
        one, two = added(x + attended, changed, relevance, conserving)
        normed = layer_norm(block.norm2, x + attended)
        mlp, attn = block.mlp, block.attn
        two = linear(activate(mlp.act, affine(mlp.fc1, normed)), mlp.fc2.weight, two, conserving)
        one, two = added(x, attended, one + linear(normed, mlp.fc1.weight, two, conserving), conserving)
        two = linear(slow.contexts[layer], attn.out.weight, two, conserving)
        normed = layer_norm(block.norm1, x)
        q, k, _ = affine(attn.qkv, normed).chunk(3, dim=-1)
        parts: list[list[Tensor]] = [[], [], []]
        of_attention.insert(0, [])
        for one_q, one_k, matrix, values, mine in zip(
            q.chunk(attn.num_heads, -1), k.chunk(attn.num_heads, -1), slow.attentions[layer], slow.values[layer],
            two.chunk(attn.num_heads, -1), strict=True,
        ):  # fmt: skip
            of_matrix, of_values = multiplied(matrix, values, mine)
            of_queries, of_keys = multiplied(one_q, one_k.T, of_matrix)
            of_attention[0].append(of_matrix)
            for part, tensor in zip(parts, (of_queries, of_keys.T, of_values), strict=True):
                part.append(tensor)
        stacked = torch.cat([tensor for part in parts for tensor in part], dim=-1)
        relevance = one + linear(normed, attn.qkv.weight, stacked, conserving)
    return relevance.detach(), of_attention


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize("method", ["lrp", "lrp_conserving"])
def test_lrp(name: str, method: str) -> None:
    view = PLAIN[name]()

    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        return slow_propagation(slow, prompt, method == "lrp_conserving")[0].sum(-1)[None, view.num_prefix_tokens :]

    compare(view, method, expected)


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("method", ["partial_lrp", "partial_lrp_conserving"])
def test_partial_lrp(name: str, layer: int, method: str) -> None:
    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        heads = slow_propagation(slow, prompt, method == "partial_lrp_conserving")[1][layer]
        return slow.readout(sum(head.clamp_min(0) for head in heads) / len(heads))[None]  # type: ignore[arg-type]

    compare(PLAIN[name](), method, expected, [layer])


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize(("layers", "scale"), [(None, 1.0), ([1], 1.0), ([0, 1], 100.0)], ids=str)
def test_transformer_attribution(name: str, layers: Any, scale: float) -> None:
    def expected(slow: Slow, prompt: Tensor) -> Tensor:
        score, of_attention = scale * (slow.embedding() @ prompt), slow_propagation(slow, prompt, True)[1]
        result = torch.eye(len(slow.x), dtype=torch.float64)
        for index in range(len(of_attention)) if layers is None else layers:
            pairs = zip(grad(score, slow.attentions[index]), of_attention[index], strict=True)
            mean = sum((gradient * own).clamp_min(0) for gradient, own in pairs) / len(of_attention[index])
            result = (torch.eye(len(slow.x)) + mean) @ result
        return slow.readout(result)[None]

    compare(PLAIN[name](), "transformer_attribution", expected, layers, scale=scale)


@pytest.mark.parametrize("name", list(PLAIN))
def test_relevance_is_conserved(name: str) -> None:
    """From the score, whose relevance is 1, to the first block's input, and half of a product's at each attention."""
    view: ViTView = PLAIN[name]()
    pixels, prompts = random_input(view, batch=3, height=4 * PATCH, width=5 * PATCH, prompts=4)
    seen: dict[int, Tensor] = {}
    inputs = lrp_module._inputs(view, pixels)
    relevance = lrp_module.propagate(view, inputs, view.grid(pixels), prompts, seen.__setitem__)
    torch.testing.assert_close(relevance.sum((-2, -1)), torch.ones(3, 4, dtype=torch.float64), rtol=0, atol=1e-9)
    assert sorted(seen) == list(range(len(view.blocks)))


def test_the_rules_conserve() -> None:
    generator = torch.Generator().manual_seed(0)

    def number(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    relevance = number(2, 3, 5, 7)
    total = relevance.sum((-2, -1))
    of_input = lrp_module._linear(relevance, number(2, 5, 40), number(7, 40), True)
    torch.testing.assert_close(of_input.sum((-2, -1)), total, rtol=0, atol=1e-9)
    of_addends = lrp_module._sum(relevance, number(2, 5, 7), number(2, 5, 7), True)
    torch.testing.assert_close(sum(part.sum((-2, -1)) for part in of_addends), total, rtol=0, atol=1e-9)
    relevance = number(2, 3, 4, 5, 6)
    for part in lrp_module._product(relevance, number(2, 4, 5, 7), number(2, 4, 6, 7)):
        torch.testing.assert_close(part.sum((-2, -1)), relevance.sum((-2, -1)) / 2, rtol=0, atol=1e-9)


def test_nothing_divided_by_nothing() -> None:
    """A prompt against which every channel counts leaves no relevance, and no NaN."""
    zeros = torch.zeros(1, 2, 3, dtype=torch.float64)
    assert (lrp_module._linear(zeros[:, None], zeros, torch.zeros(3, 3, dtype=torch.float64), True) == 0).all()
    for part in lrp_module._sum(zeros[:, None], zeros, zeros, True):
        assert (part == 0).all()


@pytest.mark.parametrize("method", ["lrp", "lrp_conserving", "partial_lrp", "transformer_attribution"])
@pytest.mark.parametrize("seed", range(3))
def test_well_conditioned_in_float32(method: str, seed: int) -> None:
    """The rules divide by sums that nearly cancel: in float32 they would leave noise."""
    view = random_view(seed, layers=6)
    pixels, prompts = random_input(view, batch=2, height=5 * PATCH, width=6 * PATCH, prompts=3)
    pixels, view = pixels.float(), to(view, torch.float32)  # the same numbers in both
    narrow = attribute(view, pixels, prompts.float(), method)
    exact = attribute(to(view, torch.float64), pixels.double(), prompts.float().double(), method)
    assert (narrow - exact).abs().mean() < 1e-3
