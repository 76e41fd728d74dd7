"""Grad-ECLIP: the last attention's values, channels weighted by the gradient, tokens by a loosened attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.engine.methods import Pooling, last_layer, method
from avgrad.engine.trace import as_maps, gradients, in_chunks, run_blocks
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError


@method("grad_eclip", explains=last_layer)
@torch.no_grad()
@in_chunks
def grad_eclip(
    view: ViTView, pixels: Tensor, prompts: Tensor, layers: Sequence[int], pooling: Pooling = "mean"
) -> Tensor:
    """Grad-ECLIP (Zhao et al. 2024, "Gradient-based Visual Explanation for Transformer-based CLIP").

    With o the class token's attention output (heads side by side, before `W_o`), `w = ds/do` weights the channels and
    `lambda_j`, the cosine of the class token's query and key j min-max normalized over the patches, the tokens:
    `E_j = relu(sum_c(w_c lambda_j v_jc))`. Versions of the code differ: all run the explained layer with a single head;
    that of the authors' repository compares query and key after `W_o`, others compare them as they are, and sum the
    maps of several layers. Here the model stays as it is, query and key, all heads side by side, are compared as they
    are, the layer is the last of `layers`, and s is the model's own score.

    Args: as `avgrad.engine.legrad.legrad`; `pooling` is ignored.

    Returns:
        `[B, P, 1, patches]`, at least float32, 0 or more.

    Raises:
        UnsupportedModelError: the model does not pool by its class token, whose attention this explains.
    """
    if view.pooler is not None or view.pool != "cls":
        raise UnsupportedModelError("grad_eclip needs a model that pools by its class token, and this one does not")
    last, start = max(layers), view.num_prefix_tokens
    x = run_blocks(view, pixels, last)
    block, grid = view.blocks[last], view.grid(pixels)
    q, k, v = block.heads(x, grid)
    context = block.context(x, grid).detach()
    with torch.enable_grad():
        context.requires_grad_()
        z = block.run_context(x, context)
        for later in view.blocks[last + 1 :]:
            z = later(z, grid)
        output = view.scored(view.output(z))
    query, keys, values = q[:, :, 0].flatten(1), k.transpose(1, 2).flatten(2), v.transpose(1, 2).flatten(2)
    similarity = F.cosine_similarity(query[:, None], keys[:, start:], dim=-1)
    low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
    loosened = F.pad((similarity - low) / (high - low).clamp_min(torch.finfo(view.dtype).tiny), (start, 0))
    maps = []
    for (gradient,) in gradients(output, [context], prompts):
        weights = gradient[:, :, 0].flatten(1)
        maps.append(as_maps(view, (loosened * (values @ weights[..., None])[..., 0]).relu()))
    return torch.stack(maps, dim=1)[:, :, None]
