"""A vision transformer written out slowly: one image, head by head, with a graph. What methods are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from random_views import PATCH, attention_pooler, random_input, random_view
from torch import Tensor

from avgrad import attribute
from avgrad.engine.blocks import PreNorm
from avgrad.engine.heads import AttentionPooler, Head
from avgrad.engine.mlp import activate
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear
from avgrad.engine.view import ViTView


def pooled_by_mean(view: ViTView, norm_before_pool: bool) -> ViTView:
    return replace(view, pool="mean", norm_before_pool=norm_before_pool)


def pooled_by_attention(view: ViTView, norm_before_pool: bool, num_skipped: int) -> ViTView:
    """With a pooler as SigLIP has it (the norm before, an MLP after), or as CoCa has it (norms of its own)."""
    pooler = attention_pooler(own_norms=not norm_before_pool, num_skipped=num_skipped)
    return replace(view, pooler=pooler, norm_before_pool=norm_before_pool)


def by_logit(view: ViTView) -> ViTView:
    return replace(view, head=Head(view.head.norm, view.head.projection, cosine=False))


VIEWS: dict[str, Callable[[], ViTView]] = {
    "class token": random_view,
    "registers": lambda: random_view(1, prefix=3, layer_scale=True, activation="quick_gelu", heads=4),
    "no biases": lambda: random_view(2, bias=False, affine=False, head=False, layers=2),
    "logit": lambda: by_logit(random_view(6)),
    "mean of patches": lambda: pooled_by_mean(random_view(3, prefix=0), True),
    "mean, then norm": lambda: pooled_by_mean(random_view(4, prefix=1, layer_scale=True), False),
    "attention": lambda: pooled_by_attention(random_view(0, prefix=0), True, 0),
    # the score of a layer is no cosine here, and the model's own, which the other methods explain, is one
    "attention, own norms": lambda: replace(
        pooled_by_attention(random_view(0, prefix=1), False, 1), layer_cosine=False
    ),
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
        assert isinstance(block, PreNorm)
        x, mlp = self.x, block.mlp
        self.inputs.append(x)
        q, k, v = affine(block.attn.qkv, layer_norm(block.norm1, x)).chunk(3, dim=-1)
        attentions, values, contexts = attend(q, k, v, block.attn.num_heads)
        self.attentions.append(attentions)
        self.values.append(values)
        self.contexts.append(torch.cat(contexts, dim=-1))
        one, two = (1 if scale is None else scale() for scale in (block.scale1, block.scale2))
        attended = affine(block.attn.out, self.contexts[-1]) * one
        y = x + attended
        hidden = affine(mlp.fc1, layer_norm(block.norm2, y))
        changed = affine(mlp.fc2, activate(mlp.act, hidden)) * two
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
        result = affine(head.projection, pooled) if isinstance(head.projection, Linear) else pooled
        return result / result.norm() if head.cosine else result

    def attention_pool(self, pooler: AttentionPooler, x: Tensor) -> Tensor:
        x = x[pooler.num_skipped :]
        x = x if pooler.token_norm is None else layer_norm(pooler.token_norm, x)
        query = pooler.query()
        query = query if pooler.query_norm is None else layer_norm(pooler.query_norm, query)
        q, k, v = affine(pooler.query_proj, query), affine(pooler.key, x), affine(pooler.value, x)
        self.pooler_attention, _, contexts = attend(q, k, v, pooler.num_heads)
        pooled = affine(pooler.out, torch.cat(contexts, dim=-1))[0]
        if pooler.mlp is None:
            return pooled
        mlp, normed = pooler.mlp, pooled if pooler.mlp_norm is None else layer_norm(pooler.mlp_norm, pooled)
        return pooled + affine(mlp.fc2, activate(mlp.act, affine(mlp.fc1, normed)))

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


def affine(part: Any, x: Tensor) -> Tensor:
    return F.linear(x, part.weight, part.bias)


def layer_norm(norm: Norm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    result = centred / (centred.square().mean(-1, keepdim=True) + norm.eps(x.dtype)).sqrt()
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
