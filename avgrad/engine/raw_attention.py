"""Raw attention: where the class token of the last layer looks. It knows nothing of the prompt: a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avgrad.engine.legrad import Pooling
from avgrad.engine.vit import UnsupportedModelError, VisionTransformer


@torch.no_grad()
def raw_attention(
    view: VisionTransformer, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """The last of the layers' class-token attention, heads averaged (Bousselham et al. 2025, Eq. 12).

    Args: as `avgrad.engine.legrad.legrad`; `pooling` has no meaning here.

    Returns:
        `[B, P, 1, patches]`, at least float32, in [0, 1], the same for every prompt.

    Raises:
        UnsupportedModelError: the model has no class token.
    """
    if view.num_prefix_tokens < 1:
        raise UnsupportedModelError("raw_attention needs a class token, and this model has none")
    x = view.embed(pixels.to(view.device, view.dtype))
    for block in view.blocks[: max(layers)]:
        x = block(x)
    q, k, _ = view.blocks[max(layers)].heads(x)
    attention = (q[:, :, :1] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
    attention = attention[..., view.num_prefix_tokens :].to(torch.promote_types(view.dtype, torch.float32))
    return attention[:, None].expand(-1, prompts.shape[1], -1, -1)
