"""The uniform view of a vision transformer: what an attribution method needs to know of one, and nothing else.

A view holds references to a model's own modules. It never copies, changes or patches the model, so it stays valid
whatever the model's library does with its methods from release to release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.attention import Grid
from avgrad.engine.blocks import Block
from avgrad.engine.heads import AttentionPooler, Head
from avgrad.errors import UnsupportedModelError

Pool = Literal["cls", "mean", "mean_all", "cls_mean", "prefix"]

# How far the view's embedding may be from the model's own, relative to its length, by the dtype of the weights.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class ViTView:
    """A vision transformer as the attribution methods see it.

    Attributes:
        embed: turns pixels `[B, 3, h, w]` into the first block's input `[B, n, d]`: patches, positions (interpolated
            to the image's grid), prefix tokens and whatever comes before the first block. An instance of a class, so
            that views can be pickled.
        blocks: the transformer blocks, in order.
        head: final norm and projection.
        patch_size: side of a patch in pixels, or its height and width.
        num_prefix_tokens: tokens in front of the patches (class token, registers), 0 or more.
        pool: how the model itself pools its last tokens: "cls" takes token 0, "mean" the mean of the patch tokens,
            "mean_all" that of all tokens; "cls_mean" puts token 0 and the patches' mean side by side, "prefix" the
            first two prefix tokens (the head's `num_pooled` is 2 then).
        norm_before_pool: whether the final norm is applied to the tokens before they are pooled, or to the pooled.
        pooler: an attentional pooler, which then pools instead of `pool`; None for none.
        empty_prompt: the embedding `[D]` of a prompt that names nothing ("a photo of a"), for the correction of models
            that pool by attention; None for none.
        layer_cosine: whether a layer's score is a cosine; None for what `head.cosine` says of the model's own score.
            False for CoCa, as in the LeGrad paper's released code.
        image_size: the only height and width that the model takes; None where it takes any multiple of its patches.
        num_frames: how many images in a row are the frames of one video, whose embedding the head gives.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: Sequence[Block]
    head: Head
    patch_size: int | tuple[int, int]
    num_prefix_tokens: int = 1
    pool: Pool = "cls"
    norm_before_pool: bool = True
    pooler: AttentionPooler | None = None
    empty_prompt: Tensor | None = None
    layer_cosine: bool | None = None
    image_size: tuple[int, int] | None = None
    num_frames: int = 1

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].weight.dtype

    @property
    def device(self) -> torch.device:
        return self.blocks[0].weight.device

    @property
    def embed_dim(self) -> int:
        """Size D of the embeddings."""
        if self.head.projection is not None:
            return self.head.projection.out_features
        return (self.blocks[0] if self.pooler is None else self.pooler).width * self.head.num_pooled

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return (self.patch_size, self.patch_size) if isinstance(self.patch_size, int) else self.patch_size

    @property
    def layer_head(self) -> Head:
        """What turns a layer's pooled token into the embedding of its score. With a pooler it is the projection alone:
        the LeGrad paper's released code leaves the final LayerNorm out there, on every layer."""
        cosine = self.head.cosine if self.layer_cosine is None else self.layer_cosine
        if self.pooler is None and cosine == self.head.cosine:
            return self.head
        norm = self.head.norm if self.pooler is None else None
        return Head(norm, self.head.projection, cosine, self.head.num_pooled)

    @property
    def is_corrected(self) -> bool:
        """Whether LeGrad's maps are corrected by the empty prompt's and min-max normalized before they are upsampled,
        both by default: so does the paper's released code with SigLIP, but neither with CoCa."""
        return self.pooler is not None and self.layer_cosine is not False

    def whole_videos(self, images: int) -> int:
        """A number of images, rounded down to whole videos; one video at least."""
        return max(images // self.num_frames, 1) * self.num_frames

    def grid(self, pixels: Tensor) -> Grid:
        """Rows and columns of patches in pixels `[B, 3, h, w]`."""
        height, width = self.patch_shape
        return pixels.shape[-2] // height, pixels.shape[-1] // width

    def tokens(self, pixels: Tensor, stop: int | None = None) -> Tensor:
        """What goes into block `stop` (None: what comes out of the last), `[B, n, d]`, of pixels `[B, 3, h, w]`."""
        grid = self.grid(pixels)
        x = self.embed(pixels.to(self.device, self.dtype))
        for block in self.blocks[:stop]:
            x = block(x, grid)
        return x

    def pooled_rows(self, tokens: int) -> list[Tensor]:
        """How much each of n tokens counts in each pooled token of `pool`, `[n]` each, with sum 1."""
        start = self.num_prefix_tokens
        spans: dict[Pool, list[tuple[int, int]]] = {
            "cls": [(0, 1)],
            "mean": [(start, tokens)],
            "mean_all": [(0, tokens)],
            "cls_mean": [(0, 1), (start, tokens)],
            "prefix": [(0, 1), (1, 2)],
        }
        rows = []
        for first, stop in spans[self.pool]:
            row = torch.zeros(tokens, dtype=self.dtype, device=self.device)
            row[first:stop] = 1 / (stop - first)
            rows.append(row)
        return rows

    def _pool(self, tokens: Tensor) -> Tensor:
        """The model's own pooled tokens, `[B, k, d]`, of all of them, `[B, n, d]`."""
        if self.pool == "cls":
            return tokens[:, :1]
        if self.pool == "prefix":
            return tokens[:, :2]
        if self.pool == "mean_all":
            return tokens.mean(1, keepdim=True)
        mean = tokens[:, self.num_prefix_tokens :].mean(1, keepdim=True)
        return mean if self.pool == "mean" else torch.cat([tokens[:, :1], mean], dim=1)

    def pooler_input(self, tokens: Tensor) -> Tensor:
        """What the model's own attentional pooler sees of the last block's output `[B, n, d]`."""
        return self.head.norm(tokens) if self.norm_before_pool and self.head.norm is not None else tokens

    def after_pooler(self, pooled: Tensor) -> Tensor:
        """The model's own embedding, not normalized, `[..., D]`, of what its pooler gives, `[..., d_p]`."""
        return self.head.project(pooled) if self.norm_before_pool else self.head(pooled)

    def output(self, tokens: Tensor) -> Tensor:
        """The model's own image embedding, not normalized, `[B, D]` from the last block's output `[B, n, d]`."""
        head = self.head
        if self.pooler is not None:
            return self.after_pooler(self.pooler(self.pooler_input(tokens)))
        if self.norm_before_pool and head.norm is not None and self.pool != "cls":
            return head.project(self._pool(head.norm(tokens)).flatten(1))
        pooled = self._pool(tokens)
        if pooled.shape[1] == 1:
            return head(pooled[:, 0])
        return head.project((pooled if head.norm is None else head.norm(pooled)).flatten(1))

    def embedding(self, tokens: Tensor) -> Tensor:
        """The model's own unit-norm image embedding `[B, D]` from the last block's output `[B, n, d]`."""
        return F.normalize(self.output(tokens), dim=-1)

    def scored(self, output: Tensor) -> Tensor:
        """An embedding `[..., D]` as the model's own score takes it: unit-norm where the score is a cosine."""
        return F.normalize(output, dim=-1) if self.head.cosine else output

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Unit-norm image embeddings `[B, D]` of pixels `[B, 3, h, w]`."""
        return self.embedding(self.tokens(pixels))


@torch.no_grad()
def check_view(
    view: ViTView, embedding: Callable[[Tensor], Tensor], name: str, sizes: Sequence[tuple[int, int]]
) -> ViTView:
    """The view, proved: its embedding of one random image of each size is the model's own.

    Args:
        view: the view.
        embedding: the model's own image embedding `[B, D]` of pixels `[B, 3, h, w]`, of any length.
        name: of the model, for errors.
        sizes: heights and widths in pixels, such as the model's own and another.

    Returns:
        The view. Nothing is computed for models on the meta device.

    Raises:
        UnsupportedModelError: the two differ.
    """
    if view.device.type == "meta":
        return view
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        pixels = torch.randn(1, 3, *size, generator=generator).to(view.device, view.dtype)
        expected = F.normalize(embedding(pixels).flatten().cpu().double(), dim=-1)
        actual = view.encode(pixels).flatten().cpu().double()
        tolerance = TOLERANCES.get(view.dtype, 1e-2)
        if actual.shape != expected.shape or not (actual - expected).norm() <= tolerance:
            height, width = size
            raise UnsupportedModelError(
                f"{name} cannot be explained: at {height} x {width} pixels its own image embedding differs from that "
                "which its layers' weights give by the formulas of its library"
            )
    return view


def interpolate_positions(
    positions: Tensor,
    grid: Grid,
    num_prefix_tokens: int,
    antialias: bool,
    native: Grid | None = None,
    mode: str = "bicubic",
) -> Tensor:
    """Learned position embeddings resampled to another grid, as the originals do.

    Args:
        positions: `[1, num_prefix_tokens + rows * columns, d]`.
        grid: rows and columns wanted.
        num_prefix_tokens: positions in front that belong to no patch and stay as they are.
        antialias: whether shrinking is antialiased (open_clip and timm: yes; ImageBind: no).
        native: rows and columns of the given ones; None for a square.
        mode: of `torch.nn.functional.interpolate`.

    Returns:
        `[1, num_prefix_tokens + rows * columns, d]` for the rows and columns wanted.
    """
    prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    native = native or (side, side)
    if tuple(grid) == tuple(native):
        return positions
    # half precision would lose the positions' fine differences
    wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
    square = wide.unflatten(1, native).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode=mode, antialias=antialias)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2).to(patches.dtype)], dim=1)
