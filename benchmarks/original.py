"""The original LeGrad, `legrad_torch` on open_clip, as a baseline."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable

from torch import Tensor, nn


def is_installed() -> bool:
    """Whether the legrad_torch package is installed."""
    return importlib.util.find_spec("legrad") is not None


def original_legrad(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The original's heatmaps over all layers.

    Args:
        model: of open_clip; it is patched, and cannot be used for anything else afterwards.

    Returns:
        A function of one image `[1, 3, h, w]` and prompts `[P, D]` that returns heatmaps `[1, P, h, w]` in [0, 1].
    """
    from legrad import LeWrapper

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        wrapped = LeWrapper(model.eval(), layer_index=0)

    def heatmaps(pixels: Tensor, prompts: Tensor) -> Tensor:
        maps: Tensor = wrapped.compute_legrad(text_embedding=prompts, image=pixels)
        return maps.detach()

    return heatmaps
