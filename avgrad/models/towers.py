"""The parts of ImageBind's towers: stems, trunks and heads of vision, audio and text.

Modules bear the names of the published checkpoint, so that `ImageBind.state_dict()` is its layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.engine.attention import Attention as AttentionPart
from avgrad.engine.blocks import PreNorm
from avgrad.engine.mlp import Mlp as MlpPart
from avgrad.engine.norms import Norm
from avgrad.engine.parts import Linear, accept_types
from avgrad.engine.view import interpolate_positions

EPS = 1e-6  # of every LayerNorm but the stems', which keep torch's 1e-5
MAX_SCALE = 100.0


@dataclass(frozen=True)
class ImageBindConfig:
    """The shape of an ImageBind model, under the keyword names of the original; the defaults are imagebind_huge's.

    `image_size`, `text_context_length` and `text_vocab_size` are constants in the original.
    """

    video_frames: int = 2
    kernel_size: tuple[int, int, int] = (2, 14, 14)
    image_size: int = 224
    out_embed_dim: int = 1024
    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12
    audio_kernel_size: int = 16
    audio_stride: int = 10
    audio_num_mel_bins: int = 128
    audio_target_len: int = 204
    text_embed_dim: int = 1024
    text_num_blocks: int = 24
    text_num_heads: int = 16
    text_context_length: int = 77
    text_vocab_size: int = 49408

    @classmethod
    def from_names(cls, names: Mapping[str, Any]) -> ImageBindConfig:
        """A configuration from keyword names of the original; those of other towers (depth, thermal, imu) and of
        training (drop path) do not matter here and are passed over.

        Raises:
            TypeError: a name that the original does not know either.
        """
        known = {field.name for field in fields(cls)}
        wrong = [
            name
            for name in names
            if name not in known and not name.startswith(("depth_", "thermal_", "imu_")) and "drop_path" not in name
        ]
        if wrong:
            raise TypeError(f"ImageBind has no configuration named {wrong[0]!r}")
        values = {name: value for name, value in names.items() if name in known}
        if "kernel_size" in values:
            values["kernel_size"] = tuple(values["kernel_size"])
        return cls(**values)


class Attention(nn.Module):
    """Multi-head self-attention, optionally with one learned extra key and value (the audio tower's)."""

    def __init__(self, width: int, num_heads: int, bias_kv: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.bias_k = nn.Parameter(torch.empty(1, 1, width)) if bias_kv else None
        self.bias_v = nn.Parameter(torch.empty(1, 1, width)) if bias_kv else None
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.to(k.dtype).expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.to(v.dtype).expand(v.shape[0], -1, -1)], dim=1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.training and x.device.type == "cpu" and not causal:
            # in bfloat16 on a CPU the fused kernel's backward pass takes several times as long as this
            context = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v
        else:
            context = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    def __init__(self, width: int, num_heads: int, bias_kv: bool) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads, bias_kv)
        self.mlp = Mlp(width)
        self.norm_1 = nn.LayerNorm(width, eps=EPS)
        self.norm_2 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.norm_1(x), causal)
        out: Tensor = x + self.mlp(self.norm_2(x))
        return out

    def view(self) -> PreNorm:
        """The block as the attribution methods see it; without the extra key and value that only audio has."""
        attention, mlp = self.attn, self.mlp
        return PreNorm(
            norm1=Norm(self.norm_1),
            attn=AttentionPart(
                Linear(attention, "in_proj_weight", "in_proj_bias"), Linear(attention.out_proj), attention.num_heads
            ),
            norm2=Norm(self.norm_2),
            mlp=MlpPart(Linear(mlp.fc1), "gelu", Linear(mlp.fc2)),
        )


accept_types(Attention)


class Trunk(nn.Module):
    def __init__(self, width: int, num_blocks: int, num_heads: int, pre_norm: bool = False, bias_kv: bool = False):
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(width, eps=EPS)) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList([TransformerBlock(width, num_heads, bias_kv) for _ in range(num_blocks)])

    def forward(self, tokens: Tensor, causal: bool = False) -> Tensor:
        tokens = self.pre_transformer_layer(tokens)
        for block in self.blocks:
            tokens = block(tokens, causal)
        return tokens


class Positions(nn.Module):
    def __init__(self, num_patches: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, num_patches + 1, width))


class VisionStem(nn.Module):
    """Patches of a still. The original repeats the still `video_frames` times for a 3-D convolution; since all frames
    are equal, that is a 2-D convolution with the kernel summed over time."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        width, kernel = config.vision_embed_dim, config.kernel_size
        self.patch_size = kernel[-1]
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embedding_helper = Positions((config.image_size // self.patch_size) ** 2, width)
        convolution = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel, bias=False)
        self.rgbt_stem = nn.ModuleDict({"proj": nn.Sequential(nn.Identity(), convolution)})

    def forward(self, pixels: Tensor) -> Tensor:
        kernel = self.rgbt_stem["proj"][1].weight.sum(2)  # type: ignore[index]
        patches = F.conv2d(pixels, kernel, stride=self.patch_size)
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        grid = (patches.shape[-2], patches.shape[-1])
        return tokens + interpolate_positions(self.pos_embedding_helper.pos_embed, grid, 1, antialias=False)


@dataclass(frozen=True, eq=False)
class VisionEmbedding:
    """What comes before the vision trunk's first block."""

    stem: VisionStem
    norm: nn.Module

    def __call__(self, pixels: Tensor) -> Tensor:
        """Tokens `[B, n, d]` of pixels `[B, 3, h, w]`."""
        tokens: Tensor = self.norm(self.stem(pixels))
        return tokens


class AudioStem(nn.Module):
    """Overlapping patches of a log-mel spectrogram."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        width, kernel, stride = config.audio_embed_dim, config.audio_kernel_size, config.audio_stride
        rows, columns = ((side - kernel) // stride + 1 for side in (config.audio_num_mel_bins, config.audio_target_len))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embedding_helper = Positions(rows * columns, width)
        self.rgbt_stem = nn.ModuleDict(
            {
                "proj": nn.Conv2d(1, width, kernel_size=kernel, stride=stride, bias=False),
                "norm_layer": nn.LayerNorm(width),
            }
        )

    def forward(self, mel: Tensor) -> Tensor:
        patches = self.rgbt_stem["norm_layer"](self.rgbt_stem["proj"](mel).flatten(2).transpose(1, 2))
        tokens = torch.cat([self.cls_token.expand(len(mel), -1, -1), patches], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class TextStem(nn.Module):
    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        length = config.text_context_length
        self.pos_embed = nn.Parameter(torch.empty(1, length, config.text_embed_dim))
        # (the plain constructor draws random numbers, for which torch on the meta device imports its compiler)
        table = torch.empty(config.text_vocab_size, config.text_embed_dim)
        self.token_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        # a part of the checkpoint; attention is told to be causal instead
        self.register_buffer("mask", torch.empty(length, length))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.token_embedding(tokens)
        return embedded + self.pos_embed[:, : tokens.shape[1]]


class TextHead(nn.Module):
    def __init__(self, width: int, out_embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=EPS), nn.Linear(width, out_embed_dim, bias=False))


class LogitScale(nn.Module):
    """The scale of a normalized embedding: learned for text, a constant of the checkpoint (20) for audio."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        value = torch.empty(())
        if learned:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.log_logit_scale.exp().clamp(max=MAX_SCALE) * embedding
