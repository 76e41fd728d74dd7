"""The adapter on real open_clip models of many shapes, and on those that it must refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from avgrad import CheckpointError, UnsupportedModelError, attribute, load
from avgrad.models.open_clip import OpenClip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def _model(seed: int = 0, quick_gelu: bool = False, **vision: Any) -> open_clip.CLIP:
    torch.manual_seed(seed)
    shape = {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16, **vision}
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg=open_clip.CLIPVisionCfg(**shape),
        text_cfg=open_clip.CLIPTextCfg(**TEXT),
        quick_gelu=quick_gelu,
    )
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms start as 0 and 1, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"quick_gelu": True},
        {"ls_init_value": 0.5},
        {"pool_type": "avg"},
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"no_ln_pre": True, "mlp_ratio": 2.0, "patch_dropout": 0.5},
        {"pos_embed_type": "sin_cos_2d"},
        {"attentional_pool": True, "attn_pooler_queries": 5},
        {"qk_norm": True, "scale_heads": True, "scale_attn": True, "scale_attn_inner": True, "scale_fc": True},
    ],
    ids=str,
)
def test_real_models_of_many_shapes(shape: dict[str, Any]) -> None:
    original = _model(**shape)
    model = OpenClip(original)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = original.encode_image(pixels, normalize=True)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    texts = ["a dog", "the sound of a bell"]
    with torch.no_grad():
        expected = original.encode_text(open_clip.tokenize(texts), normalize=True)
    torch.testing.assert_close(model.encode_text(texts), expected, rtol=0, atol=1e-6)
    prompts = model.encode_text(texts)
    larger = torch.randn(1, 3, 48, 96)  # another size, not square
    for pooling in ("mean", "cls"):
        closed = attribute(model.vision, larger, prompts, pooling=pooling, per_layer=True)
        oracle = attribute(model.vision, larger, prompts, "legrad_autograd", pooling=pooling, per_layer=True)
        assert (closed - oracle).abs().amax() < 2e-6 * oracle.amax()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"attentional_pool": "cascade"}, "more than the first query of one attentional pooler"),
        ({"scaled_cosine_attn": True}, "scaled cosine attention, which open_clip itself cannot compute"),
        ({"layers": (1, 1, 1, 1)}, "ModifiedResNet"),
        ({"timm_model_name": "resnet18", "image_size": 224}, "it is a ResNet"),
        (
            {"timm_model_name": "convnext_atto", "image_size": 224, "timm_pool": "abs_attn", "timm_proj": None},
            "it is a ConvNeXt",
        ),
    ],
)
def test_models_that_the_view_cannot_express_are_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"odd cannot be explained.*{message}"):
        OpenClip(_model(**shape), name="odd")


def test_names_that_are_none() -> None:
    for name, message in (
        ("open_clip:ViT-B-99/openai", "no model 'ViT-B-99'"),
        ("open_clip:ViT-B-16/nobody", "no weights 'nobody' for ViT-B-16.*laion2b_s34b_b88k"),
        ("open_clip:RN50/openai", "ModifiedResNet"),
        ("open_clip:", "there is no model"),
        ("imagebind_tiny", "there is no model 'imagebind_tiny'"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            load(name)


def test_a_tokenizer_that_needs_another_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(UnsupportedModelError, match=r"ViT-B-16-SigLIP/webli has a tokenizer.*pip install transformers"):
        load("open_clip:ViT-B-16-SigLIP/webli")


def test_a_text_tower_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.RobertaConfig(**shape, vocab_size=49500, max_position_embeddings=90).save_pretrained(tmp_path)
    torch.manual_seed(0)
    original = open_clip.CustomTextCLIP(
        embed_dim=32,
        vision_cfg=open_clip.CLIPVisionCfg(image_size=64, layers=2, width=64, head_width=16, patch_size=16),
        text_cfg=open_clip.CLIPTextCfg(hf_model_name=str(tmp_path), hf_model_pretrained=False, hf_proj_type="linear"),
    ).eval()
    model = OpenClip(original, open_clip.SimpleTokenizer(context_length=32))
    texts, pixels = ["a dog", "the sound of a bell"], torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = original.encode_text(model.tokenizer(texts), normalize=True)
        image = original.encode_image(pixels, normalize=True)
    torch.testing.assert_close(model.encode_text(texts), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encode_image(pixels), image, rtol=0, atol=1e-5)


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = open_clip.create_model("ViT-S-32-alt", load_weights=False).eval()
    torch.save(original.state_dict(), tmp_path / "small.pt")
    model = load("open_clip:ViT-S-32-alt", checkpoint=tmp_path / "small.pt")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = original.encode_image(pixels, normalize=True)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    (tmp_path / "broken.pt").write_bytes((tmp_path / "small.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load("open_clip:ViT-S-32-alt", checkpoint=tmp_path / "broken.pt")


def test_out_of_memory_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(open_clip, "create_model", used_up)
    with pytest.raises(torch.OutOfMemoryError):
        load("open_clip:ViT-B-32/laion2b_s34b_b79k")
