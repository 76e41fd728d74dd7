"""What timm's attention knows of positions: rotary embeddings and relative position biases, for grids of any size.

timm keeps them for the grid that a model was built with. For another grid they are computed by timm's own code on a
stand-in of the module, so the model itself is never changed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Grid = tuple[int, int]


def stand_in(module: nn.Module) -> Any:
    """A module with the same weights and buffers of its own, so that changing its size leaves the original as it is."""
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = dict(module._parameters)
    twin.__dict__["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    return twin


@dataclass(frozen=True)
class Rotary:
    """timm's rotary position embedding of queries and keys.

    Attributes:
        rope: timm's module, which all blocks share.
        half: rotate halves of a head's width instead of neighboring pairs.
        num_prefix_tokens: tokens in front, which are not rotated.
        block: number of the block, where each has frequencies of its own ("mixed" RoPE); None where not.
    """

    rope: Any
    half: bool
    num_prefix_tokens: int
    block: int | None = None

    def __call__(self, q: Tensor, k: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Rotated `q` and `k`, both `[B, h, n, d_h]`."""
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat

        embedding, start = self.embedding(grid), self.num_prefix_tokens

        def rotated(x: Tensor) -> Tensor:
            patches = apply_rot_embed_cat(x[:, :, start:], embedding, half=self.half)
            return torch.cat([x[:, :, :start], patches], dim=2).to(x.dtype)

        return rotated(q), rotated(k)

    def embedding(self, grid: Grid) -> Tensor:
        """Sines and cosines, `[patches, 2 * d_h]`, or `[h, patches, 2 * d_h]` of one block's own."""
        from timm.layers.pos_embed_sincos import get_mixed_freqs, get_mixed_grid

        rope = self.rope
        if self.block is not None:
            coordinates = get_mixed_grid(list(grid), grid_indexing=rope.grid_indexing, device=rope.freqs.device)
            mixed: Tensor = get_mixed_freqs(rope.freqs[:, self.block], *coordinates)
            return mixed
        native = getattr(rope, "feat_shape", None)
        if native is None:
            embedding: Tensor = rope.get_embed(shape=list(grid))
            return embedding
        if tuple(native) != grid:
            rope = stand_in(rope)
            rope.update_feat_shape(list(grid))
        embedding = rope.get_embed()
        return embedding


@dataclass(frozen=True)
class RelativeBias:
    """timm's relative position bias, which is added to the attention's logits.

    Attributes:
        modules: the modules whose biases are summed: timm's `RelPosBias` or `RelPosMlp`, BEiT's attention (which holds
            a table of its own) or BEiT's `RelativePositionBias` (which all blocks share).
    """

    modules: tuple[Any, ...]

    def __call__(self, grid: Grid) -> Tensor:
        """`[1, h, n, n]`, prefix tokens included."""
        biases = [self._bias(module, grid) for module in self.modules]
        return biases[0] if len(biases) == 1 else torch.stack(biases).sum(0)

    @staticmethod
    def _bias(module: Any, grid: Grid) -> Tensor:
        if tuple(module.window_size) != grid:
            module = stand_in(module)
            module.set_window_size(grid)
        with torch.no_grad():
            if hasattr(module, "get_bias"):
                bias: Tensor = module.get_bias()
            elif hasattr(module, "_get_rel_pos_bias"):
                bias = module._get_rel_pos_bias()
            else:
                bias = module()[None]
        return bias
