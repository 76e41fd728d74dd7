"""Patch similarity: each patch token through the model's own head, compared with the prompt. A baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.heads import AttentionPooler
from avgrad.engine.methods import Pooling, last_layer, method
from avgrad.engine.view import ViTView


@method("cosine", explains=last_layer)
@torch.no_grad()
def cosine(view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean") -> Tensor:
    """Cosine similarity of patches (after the last of the layers and the head) and prompts (the paper's plain row).

    Where the model pools by attention, the pooler looks at each patch alone: its attention to it is 1, so that what
    comes out is that patch's value, projected.

    Args: as `avgrad.engine.legrad.legrad`; `pooling` is ignored.

    Returns:
        `[B, P, 1, patches]`, at least float32, in [-1, 1].
    """
    x = view.tokens(pixels, max(layers) + 1)
    if view.pooler is None:
        embedded = view.head(x[:, view.num_prefix_tokens :])
    else:
        embedded = view.after_pooler(_alone(view.pooler, view.pooler_input(x), view))
    patches = F.normalize(embedded, dim=-1)
    similarity = F.normalize(prompts, dim=-1) @ patches.transpose(-1, -2)
    return similarity.to(torch.promote_types(view.dtype, torch.float32))[:, :, None]


def _alone(pooler: AttentionPooler, tokens: Tensor, view: ViTView) -> Tensor:
    """What the pooler makes of each patch alone, `[B, patches, d_p]`, of all of a layer's tokens `[B, n, d]`."""
    _, _, values = pooler.heads(tokens)
    return pooler.transform(pooler.mix(values[:, :, view.num_prefix_tokens - pooler.num_skipped :]))
