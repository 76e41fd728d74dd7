"""A vision transformer written out slowly: one image, head by head, with a graph. What methods are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from test_engine import PATCH, WIDTH, random_input, random_view
from torch import Tensor

from avgrad import attribute
from avgrad.engine.view import AttentionPooler, Norm, PoolerMlp, ViTView, activate


def pooled_by_mean(view: ViTView, norm_before_pool: bool) -> ViTView:
    return replace(view, pool="mean", norm_before_pool=norm_before_pool)


def pooled_by_attention(view: ViTView, norm_before_pool: bool, num_skipped: int) -> ViTView:
    """With a pooler as SigLIP has it (the norm before, an MLP after), or as CoCa has it (norms of its own)."""
    generator = torch.Generator().manual_seed(5)

    def number(*shape: int, scale: float = 0.3) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    def norm() -> Norm:
        return Norm(1 + number(WIDTH), number(WIDTH), 1e-6)

    mlp = PoolerMlp(norm(), number(40, WIDTH), number(40), number(WIDTH, 40), number(WIDTH), "gelu_tanh")
    pooler = AttentionPooler(
        query=number(WIDTH, scale=1.0),
        query_norm=None if norm_before_pool else norm(),
        query_weight=number(WIDTH, WIDTH),
        query_bias=number(WIDTH),
        token_norm=None if norm_before_pool else norm(),
        key_weight=number(WIDTH, WIDTH),
        key_bias=number(WIDTH),
        value_weight=number(WIDTH, WIDTH),
        value_bias=number(WIDTH),
        out_weight=number(WIDTH, WIDTH),
        out_bias=number(WIDTH),
        num_heads=4,
        mlp=mlp if norm_before_pool else None,
        num_skipped=num_skipped,
    )
    return replace(view, pooler=pooler, norm_before_pool=norm_before_pool)


VIEWS: dict[str, Callable[[], ViTView]] = {
    "class token": random_view,
    "registers": lambda: random_view(1, prefix=3, layer_scale=True, activation="quick_gelu", heads=4),
    "no biases": lambda: random_view(2, bias=False, affine=False, head=False, layers=2),
    "logit": lambda: replace(random_view(6), head=replace(random_view(6).head, cosine=False)),
    "mean of patches": lambda: pooled_by_mean(random_view(3, prefix=0), True),
    "mean, then norm": lambda: pooled_by_mean(random_view(4, prefix=1, layer_scale=True), False),
    "attention": lambda: pooled_by_attention(random_view(0, prefix=0), True, 0),
    "attention, own norms": lambda: pooled_by_attention(random_view(0, prefix=1), False, 1),
}
PLAIN = {name: make for name, make in VIEWS.items() if "attention" not in name}


@dataclass
class Slow:
    """One image's forward pass with a graph, written out head by head."""

    view: ViTView
    x: Tensor
    inputs: list[Tensor] = field(default_factory=list)  # [n, d] per layer
    attentions: list[list[Tensor]] = field(default_factory=list)  # [n, n] per layer and head
    values: list[list[Tensor]] = field(default_factory=list)
    contexts: list[Tensor] = field(default_factory=list)  # [n, d]
    added: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # by attention and MLP, [n, d]
    pooler_attention: list[Tensor] = field(default_factory=list)  # [1, m] per head

    @classmethod
    def run(cls, view: ViTView, pixels: Tensor) -> Slow:
        slow = cls(view, view.embed(pixels[None])[0].requires_grad_())
        for block in view.blocks:
            slow.block(block)
        return slow

    def block(self, block: Any) -> None:
        x = self.x
        self.inputs.append(x)
        q, k, v = F.linear(layer_norm(block.norm1, x), block.qkv_weight, block.qkv_bias).chunk(3, dim=-1)
        attentions, values, contexts = attend(q, k, v, block.num_heads)
        self.attentions.append(attentions)
        self.values.append(values)
        self.contexts.append(torch.cat(contexts, dim=-1))
        one, two = (1 if scale is None else scale for scale in (block.scale1, block.scale2))
        attended = F.linear(self.contexts[-1], block.out_weight, block.out_bias) * one
        y = x + attended
        hidden = F.linear(layer_norm(block.norm2, y), block.fc1_weight, block.fc1_bias)
        changed = F.linear(activate(block.activation, hidden), block.fc2_weight, block.fc2_bias) * two
        self.added.append((attended, changed))
        self.x = y + changed

    def embedding(self) -> Tensor:
        """`[D]`, at unit length where the score is a cosine."""
        view, head, x = self.view, self.view.head, self.x
        start = view.num_prefix_tokens

        def norm(t: Tensor) -> Tensor:
            return t if head.norm is None else layer_norm(head.norm, t)

        if view.pooler is not None:
            pooled = self.attention_pool(view.pooler, norm(x) if view.norm_before_pool else x)
            pooled = pooled if view.norm_before_pool else norm(pooled)
        elif view.pool == "cls":
            pooled = norm(x[0])
        else:
            pooled = norm(x[start:]).mean(0) if view.norm_before_pool else norm(x[start:].mean(0))
        result = pooled if head.weight is None else F.linear(pooled, head.weight, head.bias)
        return result / result.norm() if head.cosine else result

    def attention_pool(self, pooler: AttentionPooler, x: Tensor) -> Tensor:
        x = x[pooler.num_skipped :]
        x = x if pooler.token_norm is None else layer_norm(pooler.token_norm, x)
        query = pooler.query if pooler.query_norm is None else layer_norm(pooler.query_norm, pooler.query)
        assert pooler.query_weight is not None
        q = F.linear(query, pooler.query_weight, pooler.query_bias)[None]
        k, v = F.linear(x, pooler.key_weight, pooler.key_bias), F.linear(x, pooler.value_weight, pooler.value_bias)
        self.pooler_attention, _, contexts = attend(q, k, v, pooler.num_heads)
        pooled = F.linear(torch.cat(contexts, dim=-1), pooler.out_weight, pooler.out_bias)[0]
        if pooler.mlp is None:
            return pooled
        mlp, normed = pooler.mlp, pooled if pooler.mlp.norm is None else layer_norm(pooler.mlp.norm, pooled)
        hidden = activate(mlp.activation, F.linear(normed, mlp.fc1_weight, mlp.fc1_bias))
        return pooled + F.linear(hidden, mlp.fc2_weight, mlp.fc2_bias)

    def readout(self, relevance: Tensor, pooler_row: Tensor | None = None) -> Tensor:
        """The patches of the pooled row of a relevance matrix `[n, n]`."""
        start = self.view.num_prefix_tokens
        if pooler_row is not None:
            row = pooler_row @ relevance[-len(pooler_row) :]
        elif self.view.pool == "cls":
            row = relevance[0]
        else:
            row = relevance[start:].mean(0)
        return row[start:]


def layer_norm(norm: Norm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    result = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    result = result if norm.weight is None else result * norm.weight
    return result if norm.bias is None else result + norm.bias


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Attention matrices, values and outputs, head by head."""
    attentions, values, contexts = [], [], []
    for one_q, one_k, one_v in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        scores = one_q @ one_k.T / one_q.shape[-1] ** 0.5
        attentions.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
        values.append(one_v)
        contexts.append(attentions[-1] @ one_v)
    return attentions, values, contexts


def grad(of: Tensor, to: Any) -> Any:
    return torch.autograd.grad(of, to, retain_graph=True)


def compare(
    view: ViTView,
    method: str,
    expected: Callable[[Slow, Tensor], Tensor],
    layers: Any = None,
    **options: Any,
) -> None:
    """Holds a method's raw maps of two images and two prompts each against `expected`'s, `[L, patches]` each."""
    pixels, prompts = random_input(view, batch=2, height=3 * PATCH, width=4 * PATCH, prompts=2)
    actual = attribute(view, pixels, prompts, method, layers, per_layer=True, **options).flatten(-2)
    assert actual.dtype == torch.float64
    for image, own, maps in zip(pixels, prompts, actual, strict=True):
        slow = Slow.run(view, image)
        for prompt, one in zip(own, maps, strict=True):
            wanted = expected(slow, prompt).detach()
            torch.testing.assert_close(one, wanted, rtol=1e-7, atol=1e-10 * float(wanted.abs().max()))
