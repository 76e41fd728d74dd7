"""The views of open_clip's image towers against the library's own modules, in float64."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip_small import SMALL

import avgrad
from avgrad import UnsupportedModelError, attribute
from avgrad.models.open_clip import refused
from avgrad.models.view import build_view


@pytest.mark.parametrize("name", SMALL)
def test_view_is_the_library(name: str) -> None:
    small = SMALL[name]()
    view = avgrad.view(small.visual)
    size = small.visual.image_size
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(small.own(pixels), dim=-1)
    torch.testing.assert_close(view.encode(pixels), expected, rtol=0, atol=1e-10)
    prompts = torch.nn.functional.normalize(torch.randn(3, view.embed_dim, dtype=torch.float64), dim=-1)
    for pooling in ("mean", "cls") if view.num_prefix_tokens else ("mean",):
        oracle = small.legrad(pixels, prompts, pooling)
        maps = attribute(view, pixels, prompts, per_layer=True, pooling=pooling).flatten(3)
        assert oracle.amax() > 0
        assert (maps - oracle).abs().amax() < 1e-10 * oracle.amax()


# Of open_clip's architectures those whose image tower is convolutional, pools tokens between stages or has windows.
REFUSED = {
    *(f"convnext_{name}" for name in ("base", "base_w", "base_w_320", "large", "large_d", "large_d_320", "small")),
    *(f"convnext_{name}" for name in ("tiny", "xlarge", "xxlarge", "xxlarge_320")),
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
    *(f"{name}-quickgelu" for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")),
    *("MobileCLIP-S1", "MobileCLIP-S2", "MobileCLIP2-S0", "MobileCLIP2-S2", "MobileCLIP2-S3", "MobileCLIP2-S4"),
    "swin_base_patch4_window7_224",
}


def test_which_architectures_are_refused() -> None:
    assert {name.removeprefix("open_clip:") for name, _ in refused()} == REFUSED
    assert all(reason for _, reason in refused())
    assert len(open_clip.list_models()) - len(REFUSED) == 116


@pytest.mark.slow
def test_every_architecture_in_its_true_size() -> None:
    """Without memory, on the meta device, so that nothing is proved."""
    for architecture in sorted(set(open_clip.list_models())):
        config = open_clip.get_model_config(architecture)
        with torch.device("meta"):
            visual = open_clip.model._build_vision_tower(
                config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)
            )
        if architecture in REFUSED:
            with pytest.raises(UnsupportedModelError, match=f"{architecture} cannot be explained: "):
                build_view(visual, architecture)
            continue
        view = build_view(visual, architecture)
        layers = config["vision_cfg"].get("layers")
        assert len(view.blocks) == (len(visual.trunk.blocks) if layers is None else layers)
        assert view.embed_dim == config["embed_dim"]
        pools = config["vision_cfg"].get("attentional_pool") or config["vision_cfg"].get("timm_pool") == "map"
        assert (view.pooler is not None) == bool(pools)
