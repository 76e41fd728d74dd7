"""Raw attention: where the class token or the pooler looks. It knows nothing of the prompt: a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avgrad.engine.methods import Pooling, last_layer, method
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError


@method("raw_attention", explains=last_layer)
@torch.no_grad()
def raw_attention(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """The last of the layers' class-token attention, heads averaged (Bousselham et al. 2025, Eq. 12).

    Where the model pools by attention, it is the pooler's attention to that layer's output, as the model itself lets it
    look: behind the final LayerNorm, if that comes before the pooler.

    Args: as `avgrad.engine.legrad.legrad`; `pooling` is ignored.

    Returns:
        `[B, P, 1, patches]`, at least float32, in [0, 1], the same for every prompt.

    Raises:
        UnsupportedModelError: the model has neither a class token nor an attentional pooler.
    """
    if view.num_prefix_tokens < 1 and view.pooler is None:
        raise UnsupportedModelError("raw_attention needs a class token, and this model has none")
    grid, last = view.grid(pixels), max(layers)
    if view.pooler is None:
        x = view.tokens(pixels, last)
        attention, _ = view.blocks[last].attention(x, grid, rows=slice(0, 1))
    else:
        x = view.tokens(pixels, last + 1)
        attention, _ = view.pooler.matrix(view.pooler_input(x))
    attention = attention.mean((1, 2))[:, None]
    patches = x.shape[1] - view.num_prefix_tokens
    attention = attention[..., -patches:].to(torch.promote_types(view.dtype, torch.float32))
    return attention[:, None].expand(-1, prompts.shape[1], -1, -1)
