"""The uniform view of a vision transformer: what an attribution method needs to know of one, and nothing else.

A view holds references to a model's own weights. It never copies, changes or patches the model, so it stays valid
whatever the model's library does with its methods from release to release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.linear import linear

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]


def activate(name: Activation, x: Tensor) -> Tensor:
    """The activation phi of an MLP, elementwise."""
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.relu(x)


def activation_derivative_(name: Activation, x: Tensor) -> Tensor:
    """The derivative phi' of an activation at its input, elementwise, in closed form, in the input's own memory."""
    if name in ("gelu", "gelu_tanh"):
        one = torch.ones((), dtype=x.dtype, device=x.device).expand_as(x)
        approximate = "tanh" if name == "gelu_tanh" else "none"
        derivative: Tensor = torch.ops.aten.gelu_backward.grad_input(one, x, approximate=approximate, grad_input=x)
        return derivative
    if name == "quick_gelu":
        gate = torch.sigmoid(1.702 * x)
        return x.mul_(1.702).mul_(1 - gate).add_(1).mul_(gate)
    return x.gt_(0)


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the last dimension.

    Attributes:
        weight: scale, `[d]`, or None for no scale.
        bias: shift, `[d]`, or None for no shift.
        eps: added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output with the mean and the reciprocal standard deviation (both `[..., 1]`) that gave it."""
        return torch.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def gradient(self, normalized: Tensor, rstd: Tensor, grad_output: Tensor) -> Tensor:
        """Back through the norm.

        Args:
            normalized: the input less its mean, over its standard deviation (no scale and shift), `[..., d]`.
            rstd: the reciprocal standard deviation of the input, `[..., 1]`.
            grad_output: gradient of the output, `[..., d]`; it is overwritten.

        Returns:
            Gradient of the input, `[..., d]`.
        """
        grad = grad_output if self.weight is None else grad_output.mul_(self.weight)
        along = (grad * normalized).mean(-1, keepdim=True)
        grad -= grad.mean(-1, keepdim=True)
        return torch.addcmul(grad, normalized, along, value=-1).mul_(rstd)


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block: `y = x + s1 * W_o attention(norm1(x))`, `z = y + s2 * W_2 phi(W_1 norm2(y))`.

    Weights have the shapes of `torch.nn.Linear` (`[out, in]`); `qkv_weight` is query, key and value stacked, `[3d, d]`.
    `scale1` and `scale2` are LayerScale factors, `[d]`, or None.
    """

    norm1: Norm
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    num_heads: int
    norm2: Norm
    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None
    activation: Activation
    scale1: Tensor | None = None
    scale2: Tensor | None = None

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every head, each `[B, h, n, d_h]`, from the block's input `[B, n, d]`."""
        batch, tokens, width = x.shape
        qkv = linear(self.norm1(x), self.qkv_weight, self.qkv_bias)
        q, k, v = qkv.view(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The attention half: `y` `[B, n, d]` and the heads' values `[B, h, n, d_h]`."""
        q, k, v = self.heads(x)
        return self.mix(x, F.scaled_dot_product_attention(q, k, v)), v

    def mix(self, x: Tensor, context: Tensor) -> Tensor:
        """`y` from the block's input `[B, n, d]` and the heads' outputs `[B, h, n, d_h]`."""
        attended = linear(context.transpose(1, 2).flatten(2), self.out_weight, self.out_bias)
        return x + (attended if self.scale1 is None else attended * self.scale1)

    def transform(self, y: Tensor, hidden: Tensor) -> Tensor:
        """`z` from `y` `[B, n, d]` and the MLP's pre-activations `[B, n, d_hidden]`."""
        changed = linear(activate(self.activation, hidden), self.fc2_weight, self.fc2_bias)
        return y + (changed if self.scale2 is None else changed * self.scale2)

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output `z` `[B, n, d]` for its input `[B, n, d]`."""
        y, _ = self.attend(x)
        return self.transform(y, linear(self.norm2(y), self.fc1_weight, self.fc1_bias))


@dataclass(frozen=True)
class PoolerMlp:
    """The MLP of an attentional pooler with its residual: `p = o + W_2 phi(W_1 norm(o))`."""

    norm: Norm | None
    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None
    activation: Activation

    def __call__(self, attended: Tensor) -> Tensor:
        """`p` `[..., d_p]` from `o` `[..., d_p]`."""
        normed = attended if self.norm is None else self.norm(attended)
        hidden = activate(self.activation, linear(normed, self.fc1_weight, self.fc1_bias))
        return attended + linear(hidden, self.fc2_weight, self.fc2_bias)

    def gradient(self, attended: Tensor, grad_output: Tensor) -> Tensor:
        """Gradient of `o`, `[B, P, d_p]`, from `o` `[B, d_p]` and the gradient of `p`, `[B, P, d_p]`."""
        if self.norm is None:
            normed = attended
        else:
            normed, mean, rstd = self.norm.statistics(attended)
        derivative = activation_derivative_(self.activation, linear(normed, self.fc1_weight, self.fc1_bias))
        grad = (derivative[:, None] * (grad_output @ self.fc2_weight)) @ self.fc1_weight
        if self.norm is not None:
            grad = self.norm.gradient(((attended - mean) * rstd)[:, None], rstd[:, None], grad)
        return grad + grad_output


@dataclass(frozen=True)
class AttentionPooler:
    """Pools tokens by attention: one learned query looks at the tokens, `o = W_o concat_k(a_k V_k)`, then an MLP.

    Where a model learns several queries (CoCa), this is the first: the others do not reach the image embedding.

    Attributes:
        query: the learned query before its norm and projection, `[d_q]`.
        query_norm: LayerNorm of the query, or None.
        query_weight, query_bias: projection, `[d_p, d_q]` and `[d_p]`; None where the query is used as it is.
        token_norm: the pooler's own LayerNorm of the tokens, or None.
        key_weight, key_bias, value_weight, value_bias: `[d_p, d]` and `[d_p]`, biases may be None.
        out_weight, out_bias: `W_o`, `[d_p, d_p]` and `[d_p]`.
        num_heads: number of heads.
        mlp: what follows the attention, or None.
        num_skipped: tokens in front that the pooler does not see.
    """

    query: Tensor
    query_norm: Norm | None
    query_weight: Tensor | None
    query_bias: Tensor | None
    token_norm: Norm | None
    key_weight: Tensor
    key_bias: Tensor | None
    value_weight: Tensor
    value_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    num_heads: int
    mlp: PoolerMlp | None = None
    num_skipped: int = 0

    def heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The query of every head, `[B, h, 1, d_h]`, and its keys and values, `[B, h, m, d_h]`.

        Args:
            tokens: all of a layer's tokens, `[B, n, d]`; the pooler sees `m = n - num_skipped` of them.
        """
        tokens = tokens[:, self.num_skipped :]
        if self.token_norm is not None:
            tokens = self.token_norm(tokens)
        query = self.query if self.query_norm is None else self.query_norm(self.query)
        if self.query_weight is not None:
            query = linear(query, self.query_weight, self.query_bias)
        q = query.view(1, self.num_heads, 1, -1).expand(len(tokens), -1, -1, -1)
        k = linear(tokens, self.key_weight, self.key_bias)
        v = linear(tokens, self.value_weight, self.value_bias)
        return q, *(t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (k, v))  # type: ignore[return-value]

    def mix(self, context: Tensor) -> Tensor:
        """`o` `[B, r, d_p]` from the heads' outputs `[B, h, r, d_h]` for r queries."""
        return linear(context.transpose(1, 2).flatten(2), self.out_weight, self.out_bias)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`o` `[B, d_p]` and the heads' values `[B, h, m, d_h]`, from all of a layer's tokens `[B, n, d]`."""
        q, k, v = self.heads(tokens)
        return self.mix(F.scaled_dot_product_attention(q, k, v))[:, 0], v

    def transform(self, attended: Tensor) -> Tensor:
        """The pooled token `[..., d_p]` from `o` `[..., d_p]`."""
        return attended if self.mlp is None else self.mlp(attended)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The pooled token `[B, d_p]` of all of a layer's tokens `[B, n, d]`."""
        return self.transform(self.attend(tokens)[0])


@dataclass(frozen=True)
class Head:
    """What turns a pooled token into an embedding: the final LayerNorm and the projection.

    Attributes:
        norm: final LayerNorm, or None.
        weight: projection, `[D, d]`, or None where the embedding is the token itself.
        bias: `[D]`, or None.
        cosine: whether a layer's score is the cosine of embedding and prompt, or their plain product (a logit).
    """

    norm: Norm | None
    weight: Tensor | None
    bias: Tensor | None = None
    cosine: bool = True

    def __call__(self, token: Tensor) -> Tensor:
        """Embedding, not normalized, `[..., D]`, of tokens `[..., d]`."""
        return self.project(token if self.norm is None else self.norm(token))

    def project(self, token: Tensor) -> Tensor:
        """The projection alone, `[..., D]`, of tokens `[..., d]`."""
        return token if self.weight is None else linear(token, self.weight, self.bias)

    def scores(self, token: Tensor, prompts: Tensor) -> Tensor:
        """`<normalize(head(token)), prompt>` (not normalized without `cosine`), `[B, P]`; differentiable.

        Args:
            token: one token per image, `[B, d]`.
            prompts: `[B, P, D]`.
        """
        embedding = F.normalize(self(token), dim=-1) if self.cosine else self(token)
        return (embedding[:, None] * prompts).sum(-1)

    def gradient(self, token: Tensor, prompts: Tensor) -> Tensor:
        """Gradient of `scores` with respect to the token.

        Args:
            token: one token per image, `[B, d]`.
            prompts: `[B, P, D]`.

        Returns:
            `[B, P, d]`.
        """
        if self.norm is None:
            normed = token
        else:
            normed, mean, rstd = self.norm.statistics(token)
        grad = prompts
        if self.cosine:
            embedding = self.project(normed)
            length = embedding.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            unit = (embedding / length)[:, None]
            grad = (prompts - (prompts * unit).sum(-1, keepdim=True) * unit) / length[:, None]
        if self.weight is not None:
            grad = grad @ self.weight
        if self.norm is not None:
            # the norm overwrites its gradient, which may still be the caller's prompts
            grad = self.norm.gradient(((token - mean) * rstd)[:, None], rstd[:, None], grad.clone())
        return grad


@dataclass(frozen=True)
class ViTView:
    """A vision transformer as the attribution methods see it.

    Attributes:
        embed: turns pixels `[B, 3, h, w]` into the first block's input `[B, n, d]`: patches, positions (interpolated
            to the image's grid), prefix tokens and whatever comes before the first block.
        blocks: the transformer blocks, in order.
        head: final LayerNorm and projection.
        patch_size: side of a patch in pixels.
        num_prefix_tokens: tokens in front of the patches (class token, registers), 0 or more.
        pool: how the model itself pools its last tokens: "cls" takes token 0, "mean" the mean of the patch tokens.
        norm_before_pool: whether the final LayerNorm is applied to the tokens before they are pooled, or to the pooled.
        pooler: an attentional pooler, which then pools instead of `pool`; None for none.
        empty_prompt: the embedding `[D]` of a prompt that names nothing ("a photo of a"), for the correction of models
            that pool by attention; None for none.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: Sequence[Block]
    head: Head
    patch_size: int
    num_prefix_tokens: int = 1
    pool: Literal["cls", "mean"] = "cls"
    norm_before_pool: bool = True
    pooler: AttentionPooler | None = None
    empty_prompt: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].qkv_weight.dtype

    @property
    def device(self) -> torch.device:
        return self.blocks[0].qkv_weight.device

    @property
    def embed_dim(self) -> int:
        """Size D of the embeddings."""
        if self.head.weight is not None:
            return self.head.weight.shape[0]
        return (self.blocks[0] if self.pooler is None else self.pooler).out_weight.shape[0]

    @property
    def layer_head(self) -> Head:
        """What turns a layer's pooled token into the embedding of its score. With a pooler it is the projection alone:
        the LeGrad paper's released code leaves the final LayerNorm out there, on every layer."""
        return self.head if self.pooler is None else replace(self.head, norm=None)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in pixels `[B, 3, h, w]`."""
        return pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size

    def output(self, tokens: Tensor) -> Tensor:
        """The model's own image embedding, not normalized, `[B, D]` from the last block's output `[B, n, d]`."""
        if self.pooler is not None:
            if self.norm_before_pool and self.head.norm is not None:
                return self.head.project(self.pooler(self.head.norm(tokens)))
            return self.head(self.pooler(tokens))
        if self.pool == "cls":
            return self.head(tokens[:, 0])
        if self.norm_before_pool and self.head.norm is not None:
            return self.head.project(self.head.norm(tokens[:, self.num_prefix_tokens :]).mean(1))
        return self.head(tokens[:, self.num_prefix_tokens :].mean(1))

    def embedding(self, tokens: Tensor) -> Tensor:
        """The model's own unit-norm image embedding `[B, D]` from the last block's output `[B, n, d]`."""
        return F.normalize(self.output(tokens), dim=-1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Unit-norm image embeddings `[B, D]` of pixels `[B, 3, h, w]`."""
        tokens = self.embed(pixels.to(self.device, self.dtype))
        for block in self.blocks:
            tokens = block(tokens)
        return self.embedding(tokens)


def interpolate_positions(positions: Tensor, grid: tuple[int, int], num_prefix_tokens: int, antialias: bool) -> Tensor:
    """Learned position embeddings resampled to another grid (bicubic), as the originals do.

    Args:
        positions: `[1, num_prefix_tokens + g * g, d]`.
        grid: rows and columns wanted.
        num_prefix_tokens: positions in front that belong to no patch and stay as they are.
        antialias: whether shrinking is antialiased (open_clip and timm: yes; ImageBind: no).

    Returns:
        `[1, num_prefix_tokens + rows * columns, d]`.
    """
    prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    if grid == (side, side):
        return positions
    # bicubic interpolation is done in float32, since bfloat16 would lose the positions' fine differences
    square = patches.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode="bicubic", antialias=antialias)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2).to(patches.dtype)], dim=1)
