"""Small random image towers of open_clip, one of each kind, with what the oracle needs to know of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import library_oracle_clip as oracle
import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import Mlp
from torch import Tensor, nn

SIZE, PATCH, WIDTH = (32, 32), 8, 16
CUSTOM = ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


class Small:
    """An image tower of open_clip in float64, its weights all random.

    Args:
        visual: the tower.
        head: by its own layers from a pooled token (with a pooler, from a layer's tokens) to the embedding.
        pooled: whether it has an attention pooler.
        cosine: whether a layer's score is a cosine.
    """

    def __init__(
        self,
        visual: Any,
        head: Callable[[Any], oracle.Score],
        pooled: bool = False,
        cosine: bool = True,
        num_prefix_tokens: int = 1,
    ) -> None:
        self.visual: Any = oracle.shaken(visual)
        self.head, self.pooled, self.cosine, self.num_prefix_tokens = head(visual), pooled, cosine, num_prefix_tokens
        self.blocks = visual.trunk.blocks if isinstance(visual, TimmModel) else visual.transformer.resblocks

    def own(self, pixels: Tensor) -> Tensor:
        output = self.visual(pixels)
        return output[0] if isinstance(output, tuple) else output

    def legrad(self, pixels: Tensor, prompts: Tensor, pooling: str) -> Tensor:
        """The oracle's maps `[B, P, L, patches]`."""
        parts: Any = (lambda: self.own(pixels), self.blocks, self.head, prompts)
        options: Any = {"cosine": self.cosine, "num_prefix_tokens": self.num_prefix_tokens}
        return (
            oracle.legrad_pooled(*parts, **options)
            if self.pooled
            else oracle.legrad(*parts, **options, pooling=pooling)
        )


def own_tower(size: Any = SIZE, patch: Any = PATCH, act: type[nn.Module] = nn.GELU, **options: Any) -> Small:
    """open_clip's VisionTransformer."""
    torch.manual_seed(0)
    visual = VisionTransformer(size, patch, 32, 3, 4, 4.0, output_dim=WIDTH, act_layer=act, **options)
    if options.get("attentional_pool"):
        return Small(visual, lambda v: lambda tokens: v.attn_pool(tokens)[:, 0] @ v.proj, pooled=True, cosine=False)
    return Small(visual, lambda v: lambda token: v.ln_post(token) @ v.proj)


def timm_tower(name: str, layers: list[nn.Module] | None = None, prefix: int = 1, **options: Any) -> Small:
    """A trunk of timm. open_clip knows it by name in its true size alone, so that a small one is put in its place."""
    torch.manual_seed(0)
    with torch.device("meta"):
        visual = TimmModel("vit_tiny_patch16_224", embed_dim=WIDTH, pool="token", proj="none")
    visual.trunk = timm.create_model(
        name,
        **{"img_size": SIZE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4, **options},
    )
    visual.head, visual.image_size = nn.Sequential(*(layers or [])), visual.trunk.patch_embed.img_size

    def head(tower: Any) -> oracle.Score:
        trunk = tower.trunk
        if trunk.attn_pool is not None:
            return lambda tokens: tower.head(trunk.head(trunk.attn_pool(tokens[:, prefix * trunk_skips(trunk) :])))
        return lambda token: tower.head(trunk.head(trunk.fc_norm(trunk.norm(token))))

    pooled = getattr(visual.trunk, "attn_pool", None) is not None
    seen = 0 if pooled and trunk_skips(visual.trunk) else prefix
    if not hasattr(visual.trunk, "attn_pool"):
        visual.trunk.attn_pool = None
    return Small(visual, head, pooled, num_prefix_tokens=seen)


def trunk_skips(trunk: nn.Module) -> bool:
    """Whether a trunk hides its prefix tokens from its pooler."""
    return type(trunk).__name__ == "VisionTransformer"


SMALL: dict[str, Callable[[], Small]] = {
    "CLIP": own_tower,
    "CLIP, QuickGELU": lambda: own_tower(act=open_clip.transformer.QuickGELU),
    "layer scale": lambda: own_tower(ls_init_value=0.5),
    "mean of patches": lambda: own_tower(pool_type="avg"),
    "CLIPA": lambda: own_tower(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True),
    "fixed positions": lambda: own_tower(pos_embed_type="sin_cos_2d"),
    "oblong image": lambda: own_tower(size=(32, 48)),
    "oblong patches": lambda: own_tower(patch=(8, 4)),
    "CoCa": lambda: own_tower(attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=4, output_tokens=True),
    **{part: lambda part=part: own_tower(**{part: True}) for part in CUSTOM},  # type: ignore[misc]
    "all custom parts": lambda: own_tower(ls_init_value=0.5, **dict.fromkeys(CUSTOM, True)),
    "EVA01": lambda: timm_tower("eva_giant_patch14_224", global_pool="token", num_classes=WIDTH),
    "EVA02": lambda: timm_tower("eva02_base_patch16_clip_224", global_pool="token", num_classes=WIDTH),
    "EVA02-L": lambda: timm_tower("eva02_large_patch14_clip_224", global_pool="token", num_classes=WIDTH),
    "EVA02-E": lambda: timm_tower("eva02_enormous_patch14_clip_224", global_pool="token", num_classes=WIDTH),
    "PE-Core": lambda: timm_tower("vit_pe_core_base_patch16_224", global_pool="map", num_classes=WIDTH),
    "PE-Core, no class token": lambda: timm_tower(
        "vit_pe_core_tiny_patch16_384", prefix=0, global_pool="map", num_classes=WIDTH, class_token=False
    ),
    "SigLIP": lambda: timm_tower("vit_base_patch16_siglip_224", prefix=0, global_pool="map", num_classes=0),
    "relative positions": lambda: timm_tower(
        "vit_relpos_medium_patch16_cls_224", [nn.Linear(32, WIDTH)], num_classes=0
    ),
    "MLP projection": lambda: timm_tower("vit_tiny_patch16_224", [Mlp(32, 2 * WIDTH, WIDTH)], num_classes=0),
}
