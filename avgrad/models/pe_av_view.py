"""The view of transformers' PE-AV: PE-Core with a temporal encoder behind its attention pooler."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.engine.heads import Head, VideoTail
from avgrad.engine.view import ViTView, check_view
from avgrad.errors import UnsupportedModelError
from avgrad.models.huggingface_parts import expect
from avgrad.models.view import check_unwrapped, views


class VideoEncoder:
    """What follows the frame tower's pooler, by the library's own modules: the tower's projection, L2 norm, the
    temporal encoder over a class token and the frames, and the contrastive head.

    Args:
        encoder: transformers' PeVideoEncoder.
        head: its `video_head`.
    """

    def __init__(self, encoder: Any, head: nn.Module) -> None:
        self.encoder, self.head = encoder, head

    def __call__(self, pooled: Tensor) -> Tensor:
        """The embeddings `[N, D]` of N videos, not normalized, from their frames' pooled tokens `[N, F, d]`."""
        encoder, embedder = self.encoder, self.encoder.embedder
        frames = F.normalize(embedder.vision_model.timm_model.head(pooled), dim=-1)
        tokens, _ = encoder.patch_embedder(embedder.data_proj(embedder.proj(frames)))
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        rotary = encoder.rotary_emb(tokens, positions)
        for layer in encoder.layers:
            tokens = layer(tokens, position_embeddings=rotary)
        embedding: Tensor = self.head(encoder.output(encoder.norm(tokens))[:, 0])
        return embedding


def video_embedding(video: Any, frames: Tensor) -> Tensor:
    """transformers' own video embedding `[N, D]`, not normalized, of frames `[N, F, 3, h, w]`."""
    embedding: Tensor = video.video_head(video.video_encoder(frames).pooler_output)
    return embedding


@views(
    "transformers.models.pe_video.modeling_pe_video.PeVideoModel",
    "transformers.models.pe_audio_video.modeling_pe_audio_video.PeAudioVideoModel",
)
def pe_av_view(model: Any, name: str) -> ViTView:
    """An image is a video of one frame."""
    from avgrad.models.timm_view import trunk_view

    video = getattr(model, "video_model", model)
    encoder = expect(video.video_encoder, "PeVideoEncoder")
    for layer in encoder.layers:
        expect(layer, "PeVideoEncoderLayer")
    expect(encoder.patch_embedder, "PeVideoEncoderPatchEmbedder")
    expect(video.video_head, "PeVideoContrastiveHead")
    check_unwrapped(encoder, video.video_head)
    tower = expect(encoder.embedder.vision_model, "TimmWrapperForImageClassification").timm_model
    trunk = trunk_view(tower, name)
    if trunk.pooler is None or type(tower.head) is not nn.Linear:
        raise UnsupportedModelError("its frame tower has no attention pooler with a projection behind it")
    tail = VideoTail(VideoEncoder(encoder, video.video_head), video.video_head.proj.out_features)
    view = ViTView(
        embed=trunk.embed,
        blocks=trunk.blocks,
        head=Head(trunk.head.norm, tail),
        patch_size=trunk.patch_size,
        num_prefix_tokens=trunk.num_prefix_tokens,
        pool=trunk.pool,
        norm_before_pool=trunk.norm_before_pool,
        pooler=trunk.pooler,
    )
    # the library builds the tower for one size
    size = tuple(tower.patch_embed.img_size)
    return check_view(view, lambda pixels: video_embedding(video, pixels[:, None]), name, [size])
