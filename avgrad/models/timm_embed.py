"""What stands in front of the first block of a timm model: patches, positions and prefix tokens, for any grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.patch_embed import PatchEmbed
from timm.models import naflexvit
from torch import Tensor

from avgrad.engine.view import interpolate_positions
from avgrad.models.timm_parts import check_parts, refuse

_PREFIX = ("cls_token", "dist_token", "reg_token")


@dataclass(frozen=True)
class Embed:
    """Tokens `[B, n, d]` of pixels `[B, 3, h, w]`, as timm's VisionTransformer, Eva, Beit and their kin make them.

    Attributes:
        model: timm's model.
    """

    model: Any

    def __call__(self, pixels: Tensor) -> Tensor:
        model, stem = self.model, self.model.patch_embed
        patches = self.patches(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = stem.norm(tokens) if hasattr(stem, "norm") else tokens
        front = [getattr(model, name, None) for name in _PREFIX]
        prefix = [token.expand(len(pixels), -1, -1) for token in front if token is not None]
        positions = getattr(model, "pos_embed", None)
        if positions is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        else:
            # the positions of the prefix tokens are learned, too, or these have none
            count = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
            positions = interpolate_positions(positions, grid, count, antialias=True, native=stem.grid_size)
            if count == 0:
                tokens = torch.cat([*prefix, tokens + positions], dim=1)
            else:
                tokens = torch.cat([*prefix, tokens], dim=1) + positions
        normed: Tensor = model.norm_pre(tokens) if hasattr(model, "norm_pre") else tokens
        return normed

    def patches(self, pixels: Tensor) -> Tensor:
        """Features of the patches, `[B, d, rows, columns]`."""
        stem = self.model.patch_embed
        if isinstance(stem, HybridEmbed):
            features = stem.backbone(pixels)
            pixels = features[-1] if isinstance(features, list | tuple) else features
        patches: Tensor = stem.proj(pixels)
        return patches


@dataclass(frozen=True)
class NaFlexEmbed:
    """The same of timm's NaFlexVit."""

    model: Any

    def __call__(self, pixels: Tensor) -> Tensor:
        embeds = self.model.embeds
        if embeds.is_linear:
            patches, grid = naflexvit.batch_patchify(
                pixels, embeds.patch_size, pad=False, channels_last=embeds.channels_last
            )
            patches = patches if embeds.norm_input is None else embeds.norm_input(patches)
            tokens = embeds.proj(patches)
        else:
            patches = embeds.proj(pixels)
            grid = (patches.shape[-2], patches.shape[-1])
            tokens = patches.flatten(2).transpose(1, 2)
        tokens = embeds.norm(tokens)
        if embeds.pos_embed_type != "none":
            tokens = tokens + self.positions(grid).to(tokens.dtype)
        prefix = [
            token.expand(len(pixels), -1, -1) for token in (embeds.cls_token, embeds.reg_token) if token is not None
        ]
        normed: Tensor = self.model.norm_pre(torch.cat([*prefix, tokens], dim=1))
        return normed

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings of a grid's patches, `[1, rows * columns, d]`; timm's own, but float64 stays float64."""
        embeds, (rows, columns) = self.model.embeds, grid
        # with its aspect ratio preserved, the square grid around the given one is interpolated, and cut
        wanted = (max(grid), max(grid)) if embeds.pos_embed_ar_preserving else grid
        if embeds.pos_embed_type == "factorized":
            y, x = (
                self._stretched(table, length)
                for table, length in zip((embeds.pos_embed_y, embeds.pos_embed_x), wanted, strict=True)
            )
            return (y[:, :rows, None] + x[:, None, :columns]).flatten(1, 2)
        learned: Tensor = embeds.pos_embed  # [1, rows, columns, d]
        if tuple(learned.shape[1:3]) != tuple(grid):
            learned = F.interpolate(
                _wide(learned.permute(0, 3, 1, 2)),
                size=wanted,
                mode=embeds.pos_embed_interp_mode,
                align_corners=embeds.pos_embed_align_corners,
                antialias=embeds.pos_embed_antialias,
            )[:, :, :rows, :columns].permute(0, 2, 3, 1)
        return learned.flatten(1, 2)

    @staticmethod
    def _stretched(table: Tensor, length: int) -> Tensor:
        """Positions along one side, `[1, length, d]`, of `[1, l, d]`."""
        if table.shape[1] == length:
            return table
        return F.interpolate(_wide(table.mT), size=length, mode="linear", align_corners=False).mT


def _wide(positions: Tensor) -> Tensor:
    """Positions in at least float32, since half precision would lose their fine differences."""
    return positions.to(torch.promote_types(positions.dtype, torch.float32))


def embed_of(model: Any) -> tuple[Embed | NaFlexEmbed, tuple[int, int], tuple[int, int]]:
    """What embeds the pixels of a timm model, the height and width of a patch, and those of the model's own images.

    Raises:
        UnsupportedModelError: naming what makes the patches, where that is not known.
    """
    if isinstance(model, naflexvit.NaFlexVit):
        embeds = model.embeds
        check_parts(
            embeds, "cls_token reg_token norm_input proj norm pos_embed pos_embed_y pos_embed_x patch_interpolator"
        )
        patch = (int(embeds.patch_size[0]), int(embeds.patch_size[1]))
        rows, columns = embeds.pos_embed_grid_size or (16, 16)
        return NaFlexEmbed(model), patch, (rows * patch[0], columns * patch[1])
    stem: Any = model.patch_embed
    if type(stem) is PatchEmbed:
        check_parts(stem, "proj norm")
    elif type(stem) is HybridEmbed:
        check_parts(stem, "backbone proj")
    else:
        raise refuse(f"its patches are made by {type(stem).__name__}, and PatchEmbed or HybridEmbed is expected")
    if stem.grid_size is None or stem.img_size is None:
        raise refuse("its patch embedding has no image size of its own")
    height, width = stem.feat_ratio(as_scalar=False)
    return Embed(model), (int(height), int(width)), (int(stem.img_size[0]), int(stem.img_size[1]))
