"""GradCAM on a vision transformer: a layer's tokens, their channels weighted by the mean of their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from avgrad.engine.methods import Pooling, method
from avgrad.engine.trace import as_maps, gradients, in_chunks, run_blocks
from avgrad.engine.view import ViTView


def explained(view: ViTView, layers: Sequence[int], options: Mapping[str, Any]) -> list[int]:
    """The layer of `layers` nearest to layer 8 of 12, scaled to the depth; with `every_layer` all of them."""
    target = max(0, round(len(view.blocks) * 8 / 12) - 1)
    nearest = min(layers, key=lambda layer: (abs(layer - target), -layer))
    return sorted(layers) if options["every_layer"] else [nearest]


@method("gradcam", explains=explained)
@torch.no_grad()
@in_chunks
def gradcam(
    view: ViTView,
    pixels: Tensor,
    prompts: Tensor,
    layers: Sequence[int],
    pooling: Pooling = "mean",
    *,
    class_token: bool = True,
    every_layer: bool = False,
) -> Tensor:
    """GradCAM (Selvaraju et al. 2017; for transformers Bousselham et al. 2025, Eq. 10).

    With `Z` the output of a block and s the model's own score of the prompt: `w = mean_i(ds/dZ_i)`,
    `E_j = relu(<w, Z_j>)` for the patches j. Our reading: s goes through all later blocks; i runs over all tokens, or,
    without `class_token`, over the patches; the layer is the one of `layers` nearest to layer 8 of 12, scaled to the
    depth. Over every layer (Table 7) the raw maps are summed as LeGrad's are, which is their mean but for a factor.
    In the last layer of a model with a class token only that token has a gradient: without it the map is 0 there.

    Args: as `avgrad.engine.legrad.legrad`; `pooling` is ignored, since s is the model's own.
        class_token: count the gradients of the class token (and other prefix tokens) among those averaged.
        every_layer: a map of each of `layers`, not of one.

    Returns:
        `[B, P, L, patches]` (L = 1 without `every_layer`), at least float32, 0 or more.
    """
    chosen = explained(view, layers, {"every_layer": every_layer})
    x, outputs, grid = run_blocks(view, pixels, chosen[0] + 1), [], view.grid(pixels)
    with torch.enable_grad():
        x.requires_grad_()
        for index in range(chosen[0], len(view.blocks)):
            if index > chosen[0]:
                x = view.blocks[index](x, grid)
            if index in chosen:
                outputs.append(x)
        output = view.scored(view.output(x))
    start = 0 if class_token else view.num_prefix_tokens
    maps = []
    for found in gradients(output, outputs, prompts):
        rows = [
            (z.detach() @ gradient[:, start:].mean(1)[..., None])[..., 0].relu()
            for z, gradient in zip(outputs, found, strict=True)
        ]
        maps.append(as_maps(view, torch.stack(rows, dim=1)))
    return torch.stack(maps, dim=1)
