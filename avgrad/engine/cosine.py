"""Patch similarity: each patch token through the model's own head, compared with the prompt. A baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.legrad import Pooling
from avgrad.engine.vit import VisionTransformer


@torch.no_grad()
def cosine(
    view: VisionTransformer, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """Cosine similarity of patches (after the last of the layers and the head) and prompts (the paper's plain row).

    Args: as `avgrad.engine.legrad.legrad`; `pooling` has no meaning here.

    Returns:
        `[B, P, 1, patches]`, at least float32, in [-1, 1].
    """
    x = view.embed(pixels.to(view.device, view.dtype))
    for block in view.blocks[: max(layers) + 1]:
        x = block(x)
    patches = F.normalize(view.head(x[:, view.num_prefix_tokens :]), dim=-1)
    similarity = F.normalize(prompts, dim=-1) @ patches.transpose(-1, -2)
    return similarity.to(torch.promote_types(view.dtype, torch.float32))[:, :, None]
