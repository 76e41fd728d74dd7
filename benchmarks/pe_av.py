"""PE-AV models of the published shapes with random weights.

The configurations are not in transformers, whose defaults are no published model. Ours are those with which its own
class gives the published sizes: for pe-av-small to the byte (the safetensors file of pe-av-small-16-frame has
3,388,082,648 bytes), for base and large to the parameters of the text and audio towers, which PE-A-Frame shares
(560 M and 1.4 B). The layers of the temporal encoders of base and large are taken to be those of small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avgrad.encoders.image import Preprocess
from avgrad.models.pe_av import PeAv
from avgrad.models.pe_av_files import build, check_library, set_weights

# width, width of the MLP, and layers of the encoders of sound, video and both
SHAPES = {"small": (768, 2048, 12, 4, 6), "base": (1024, 2752, 16, 4, 6), "large": (1792, 4800, 28, 4, 6)}
NAMES = tuple(f"pe-av-{size}" for size in SHAPES)
HEAD_WIDTH = 128
SIZE, PATCH_SIZE = 336, 14


def config(name: str) -> Any:
    """The configuration, a PeAudioVideoConfig.

    Args:
        name: one of `NAMES`.
    """
    from transformers import PeAudioVideoConfig

    width, hidden, audio, video, both = SHAPES[name.removeprefix("pe-av-")]

    def encoder(layers: int) -> dict[str, Any]:
        sizes = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers}
        return {**sizes, "num_attention_heads": width // HEAD_WIDTH, "head_dim": HEAD_WIDTH}

    tower = {"architecture": "vit_pe_core_large_patch14_336", "do_pooling": True, "global_pool": "map"}
    vision = {**tower, "num_classes": 1024, "num_labels": 1024}
    return PeAudioVideoConfig(
        audio_video_config={
            "audio_config": encoder(audio),
            "video_config": {"vision_config": vision, **encoder(video)},
            **encoder(both),
        }
    )


def random_weights(model: Any, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a model without any, float32: norms scale by about 1, other layers keep the size of what they get.

    Args:
        model: of `avgrad.models.pe_av_files.build`.
        seed: of the random generator.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, tensor in model.state_dict().items():
        spread = 0.05 if tensor.ndim < 2 else (3 / tensor[0].numel()) ** 0.5
        weights[key] = torch.empty(tensor.shape).uniform_(-spread, spread, generator=generator)
        if (tensor.ndim == 1 and key.endswith("weight")) or key.endswith("alpha"):
            weights[key] += 1
    return weights


def random_model(name: str, towers: tuple[str, ...] = ("vision",), seed: int = 0) -> PeAv:
    """A model with random weights, which takes images, and sounds with the tower "audio".

    Args:
        name: one of `NAMES`.
        towers: which to build; not "text", for it would need a tokenizer.
        seed: of the random generator.
    """
    check_library(name)
    from transformers import PeAudioFeatureExtractor

    model = build(config(name), towers)
    set_weights(model, random_weights(model, seed))
    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(SIZE, PATCH_SIZE, half, half, "bilinear", squash=True)
    return PeAv(model, preprocess, PeAudioFeatureExtractor() if "audio" in towers else None, name=name)
