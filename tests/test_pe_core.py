"""Plain PE-Core with text prompts, by the names of open_clip and timm."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

import avgrad
from avgrad.models.open_clip import OpenClip
from avgrad.models.registry import list_models
from avgrad.models.timm import TimmModel


@pytest.fixture(scope="module")
def model() -> OpenClip:
    """PE-Core-T-16-384 of its true shape but for the depth, with random weights."""
    torch.manual_seed(0)
    config: dict[str, Any] = open_clip.get_model_config("PE-Core-T-16-384")
    vision = {**config["vision_cfg"], "image_size": 64}
    text = {**config["text_cfg"], "layers": 1}
    original = open_clip.model.CLIP(config["embed_dim"], vision, text)
    original.visual.trunk.set_input_size(img_size=64)
    original.visual.trunk.blocks = original.visual.trunk.blocks[:3]
    return OpenClip(original.eval(), open_clip.get_tokenizer("PE-Core-T-16-384"), "PE-Core-T-16-384")


def test_published_names() -> None:
    names = list_models("open_clip:PE-Core-*")
    assert {name.partition("/")[0].removeprefix("open_clip:") for name in names} >= {
        "PE-Core-T-16-384", "PE-Core-S-16-384", "PE-Core-B-16", "PE-Core-L-14-336", "PE-Core-bigG-14-448",
    }  # fmt: skip
    assert any(name.startswith("timm:vit_pe_core_large_patch14_336") for name in list_models("timm:vit_pe_core_*"))


def test_embeddings_and_maps(model: OpenClip) -> None:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    texts = ["a dog", "the sound of a bell"]
    with torch.no_grad():
        assert torch.allclose(
            model.encode_image(pixels), model.model.encode_image(pixels, normalize=True), rtol=0, atol=1e-5
        )
        tokens = open_clip.get_tokenizer("PE-Core-T-16-384")(texts)
        assert torch.allclose(
            model.encode_text(texts), model.model.encode_text(tokens, normalize=True), rtol=0, atol=1e-5
        )
    assert model.modalities == ("text",) and model.vision.empty_prompt is not None
    found = avgrad.attribute(model, pixels, model.encode_text(texts), per_layer=True)
    expected = avgrad.attribute(model, pixels, model.encode_text(texts), method="legrad_autograd", per_layer=True)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6) and float(found.max()) > 0


def test_timm_takes_embeddings() -> None:
    """timm has no text tower: its model, whose head is the projection, takes image prompts and embeddings."""
    import timm

    torch.manual_seed(0)
    tower = timm.create_model("vit_pe_core_tiny_patch16_384", depth=2, img_size=64)
    model = TimmModel(tower, "timm:vit_pe_core_tiny_patch16_384")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    prompts = torch.nn.functional.normalize(torch.randn(2, model.vision.embed_dim), dim=-1)
    assert model.modalities == () and model.vision.head.cosine
    assert avgrad.attribute(model, pixels, prompts).shape == (1, 2, 64, 64)
