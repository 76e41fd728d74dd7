"""Small random PE-AV models in the published layout, which transformers itself defines and saves, and the oracle."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import library_oracle_clip as oracle
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    PeAudioFeatureExtractor,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PeAudioVideoProcessor,
    PeVideoVideoProcessor,
    PreTrainedTokenizerFast,
)

WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "a", "the", "photo", "of", "dog", "barking", "drum", "rain", "voice"]
SIDE = 28
# layers of audio, video and both, and width: the three published sizes differ in these
SIZES = {"small": (2, 1, 1, 16), "base": (3, 2, 1, 24), "large": (4, 2, 2, 32)}


def config(size: str = "small") -> PeAudioVideoConfig:
    """A configuration with all the parts of the published ones: a frame tower of 2 x 2 patches, a codec of 40 ms."""
    audio, video, both, width = SIZES[size]

    def encoder(layers: int) -> dict[str, Any]:
        heads = {"num_attention_heads": width // 8, "head_dim": 8}
        return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, **heads}

    special = {f"{name}_token_id": WORDS.index(f"[{token}]") for name, token in (("bos", "CLS"), ("cls", "CLS"))}
    special |= {f"{name}_token_id": WORDS.index(f"[{token}]") for name, token in (("eos", "SEP"), ("sep", "SEP"))}
    text = {"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = {"depth": 3, "embed_dim": 32, "num_heads": 4, "img_size": SIDE}
    vision = {"architecture": "vit_pe_core_large_patch14_336", "model_args": tower, "num_classes": 12, "num_labels": 12}
    codec = {"encoder_hidden_size": 2, "downsampling_ratios": [2, 8, 10, 12], "codebook_dim": 4}
    return PeAudioVideoConfig(
        text_config={**text, **special, "vocab_size": len(WORDS), "pad_token_id": WORDS.index("[PAD]")},
        audio_video_config={
            "audio_config": {"dac_config": codec, **encoder(audio)},
            "video_config": {"vision_config": vision, **encoder(video)},
            **encoder(both),
        },
    )


@cache
def original(size: str = "small") -> Any:
    """transformers' own model with random weights of some spread, in eval mode and float32."""
    torch.manual_seed(0)
    model = PeAudioVideoModel(config(size)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 or "alpha" not in name:
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise * (0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5))
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """Of the words of `WORDS`, between ModernBERT's special tokens."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


def processor() -> PeAudioVideoProcessor:
    does = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    video = PeVideoVideoProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, **does
    )
    return PeAudioVideoProcessor(PeAudioFeatureExtractor(), video, tokenizer())


def save(folder: Path, size: str = "small") -> Path:
    """Writes the model and its processors as transformers does; the folder."""
    original(size).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def video_embedding(video: Any, frames: Tensor) -> Tensor:
    """transformers' own embeddings `[N, D]`, at unit length, of frames `[N, F, 3, h, w]`, by its PeVideoModel."""
    with torch.no_grad():
        return F.normalize(video.video_head(video.video_encoder(frames).pooler_output), dim=-1)


class Logits(NamedTuple):
    logits: Tensor


class Given(nn.Module):
    """Stands in for the frame tower and gives what it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.given = logits

    def forward(self, _: Tensor) -> Logits:
        return Logits(self.given)


def legrad(video: Any, frames: Tensor, prompts: Tensor) -> Tensor:
    """The oracle's raw maps `[F, P, L, patches]` of one video `[1, F, 3, h, w]`: autograd through transformers' own
    video encoder, with what timm's own pooler makes of each layer's tokens in place of its frame tower's output.

    Args:
        video: transformers' PeVideoModel.
    """
    video = copy.deepcopy(video)
    encoder = copy.copy(video.video_encoder)
    encoder._modules = dict(encoder._modules)
    embedder = encoder._modules["embedder"] = copy.copy(encoder.embedder)
    tower = embedder.vision_model.timm_model
    tower.attn_pool.requires_grad_(True)

    def head(tokens: Tensor) -> Tensor:
        embedder._modules = {**embedder._modules, "vision_model": Given(tower.head(tower.attn_pool(tokens)))}
        return video.video_head(encoder(frames).pooler_output)

    # the pooler sees the class token too, whose share is dropped
    return oracle.legrad_pooled(lambda: tower(frames[0]), tower.blocks, head, prompts, num_prefix_tokens=1)
