"""TextSpan's decomposition: what each token adds, through each head of each layer, to the score of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avgrad.engine.blocks import plain_block, scaled
from avgrad.engine.heads import Tail
from avgrad.engine.methods import Pooling, method
from avgrad.engine.parts import Linear
from avgrad.engine.trace import as_maps, in_chunks
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError


@dataclass(frozen=True)
class Decomposition:
    """A score as a sum: `attention` over its last three dimensions, `mlp` over its last, `embedded` and `constant`.

    Attributes:
        attention: what token i adds through head k of layer l, `[B, P, L, h, n]`.
        mlp: what the MLP of layer l adds, `[B, P, L]`.
        embedded: what the tokens before the first block add, `[B, P]`.
        constant: what biases and the final LayerNorm's mean and shift add, `[B, P]`.
    """

    attention: Tensor
    mlp: Tensor
    embedded: Tensor
    constant: Tensor

    @property
    def total(self) -> Tensor:
        """The score, `[B, P]`."""
        return self.attention.sum((2, 3, 4)) + self.mlp.sum(2) + self.embedded + self.constant


@torch.no_grad()
def decompose(view: ViTView, pixels: Tensor, prompts: Tensor) -> Decomposition:
    """The model's own score of each prompt as a sum over layers, heads and tokens (Gandelsman et al. 2024).

    Blocks add to the pooled token, so it is a sum; the final LayerNorm, whose mean and deviation are taken as they are,
    and the projection are linear in it. Only direct effects count: not what a layer does to later layers.

    Args:
        view: the model.
        pixels: `[B, 3, h, w]`.
        prompts: `[B, P, D]`. The unit vectors give the decomposition of the embedding itself.

    Raises:
        UnsupportedModelError: the model pools by attention, whose MLP is not linear.
    """
    if view.pooler is not None:
        raise UnsupportedModelError("textspan needs a model that does not pool by attention, and this one does")
    blocks = [plain_block(block, "textspan") for block in view.blocks]
    if view.pool not in ("cls", "mean") or isinstance(view.head.projection, Tail):
        raise UnsupportedModelError("textspan needs a model whose embedding is linear in one pooled token")
    x, inputs, grid = view.embed(pixels.to(view.device, view.dtype)), [], view.grid(pixels)
    for block in blocks:
        inputs.append(x)
        x = block(x, grid)
    head, direction = view.head, prompts
    constant = prompts.new_zeros(prompts.shape[:2])
    if head.cosine:
        direction = direction / view.output(x).norm(dim=-1).clamp_min(1e-12)[:, None, None]
    if isinstance(head.projection, Linear):
        if head.projection.bias is not None:
            constant = constant + direction @ head.projection.bias
        direction = direction @ head.projection.weight
    # the output depends on rows of the tokens by their weighted sum, with a row's own deviation in its weight where
    # the norm comes before the mean
    rows = slice(0, 1) if view.pool == "cls" else slice(view.num_prefix_tokens, None)
    pooled = x[:, rows]
    weights = torch.full_like(pooled[..., :1], 1 / pooled.shape[1])  # [B, r, 1]
    if head.norm is not None:
        if not view.norm_before_pool:
            pooled = pooled.mean(1, keepdim=True)
        mean, rstd = pooled.mean(-1, keepdim=True), head.norm.cache(pooled).rstd.to(pooled.dtype)
        if head.norm.bias is not None:
            constant = constant + direction @ head.norm.bias
        if head.norm.weight is not None:
            direction = direction * head.norm.weight
        constant = constant - (mean * rstd).mean(1) * direction.sum(-1)
        weights = weights * rstd

    def share(tokens: Tensor) -> Tensor:
        """What an addend `[B, r, d]` of the rows is worth, `[B, P]`."""
        return (direction @ (tokens * weights).sum(1)[..., None])[..., 0]

    attention, mlp = [], []
    for block, before, after in zip(blocks, inputs, [*inputs[1:], x], strict=True):
        matrix, v = block.attention(before, grid, rows)  # [B, h, r, n]
        attended = (matrix * weights[:, None]).sum(2, keepdim=True)  # [B, h, 1, n]
        branch, out = scaled(block.scale1, direction), block.attn.out
        u = out.pull(branch).unflatten(-1, (block.num_heads, -1)).transpose(1, 2)  # [B, h, P, d_h]
        attention.append((u @ v.transpose(-1, -2) * attended).transpose(1, 2))
        if out.bias is not None:
            constant = constant + branch @ out.bias * weights.sum(1)
        mlp.append(share(after[:, rows] - before[:, rows] - block.mix(before, matrix @ v, rows)))
    return Decomposition(torch.stack(attention, 2), torch.stack(mlp, 2), share(inputs[0][:, rows]), constant)


@method("textspan")
@torch.no_grad()
@in_chunks
def textspan(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """What each patch adds to the score through the attention of each layer (Gandelsman et al. 2024, section 5.2).

    `E_lj = sum_k c_lkj`, c as `decompose` gives it. Our reading: the paper shares the norm's mean and shift and the
    biases out evenly among all terms, which adds the same to every patch; here they stay apart. Its segmentation also
    takes the mean over all classes of a data set off each map, and one prompt has none.

    Args: as `avgrad.engine.legrad.legrad`; `pooling` is ignored, since the score is the model's own.

    Returns:
        `[B, P, L, patches]`, at least float32, of either sign. The method's map is their sum over layers.

    Raises:
        UnsupportedModelError: the model pools by attention.
    """
    return as_maps(view, decompose(view, pixels, prompts).attention[:, :, list(layers)].sum(3))
