"""Models that pool by attention: SigLIP (timm's pooler) and CoCa (open_clip's), and what an empty prompt corrects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import open_clip
import pytest
import timm
import torch
from golden.files import Golden
from library_oracle import timm_features, timm_legrad
from open_clip.timm_model import TimmModel
from PIL import Image
from torch import Tensor, nn

from avgrad import Localizer, Prompt, attribute
from avgrad.engine import legrad as legrad_module
from avgrad.engine.attribute import min_max
from avgrad.engine.view import ViTView
from avgrad.errors import UnsupportedModelError
from avgrad.models.open_clip import OpenClip
from avgrad.models.timm_view import trunk_view
from avgrad.models.view import build_view

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TRUNK = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 0}
SIGLIP = {**TRUNK, "class_token": False, "global_pool": "map"}


def _shaken(model: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms start as 0 and 1, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _trunk(**shape: Any) -> Any:
    torch.manual_seed(0)
    return _shaken(timm.create_model("vit_base_patch16_224", **{**SIGLIP, **shape}))


def _coca(**vision: Any) -> open_clip.CoCa:
    torch.manual_seed(0)
    shape = {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16, "attentional_pool": True}
    shape |= {"attn_pooler_queries": 7, "attn_pooler_heads": 4, "output_tokens": True, **vision}
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    model = open_clip.CoCa(
        embed_dim=32,
        multimodal_cfg=open_clip.coca_model.MultimodalCfg(**TEXT),
        text_cfg=open_clip.CLIPTextCfg(**text),
        vision_cfg=open_clip.CLIPVisionCfg(**shape),
    )
    return _shaken(model)


def _siglip() -> open_clip.CustomTextCLIP:
    """open_clip's own SigLIP with a small trunk put in, since it knows only those of true size by name."""
    trunk = _trunk()
    model = open_clip.CustomTextCLIP(
        embed_dim=48,
        vision_cfg=open_clip.CLIPVisionCfg(image_size=64, layers=1, width=32, head_width=8, patch_size=16),
        text_cfg=open_clip.CLIPTextCfg(**TEXT),
    )
    with torch.device("meta"):
        visual = TimmModel("vit_base_patch16_siglip_224", embed_dim=48, image_size=64, pool="map", proj="none")
    visual.trunk = trunk
    model.visual = visual
    return _shaken(model)


def _check_closed_form(view: ViTView, prompts: Tensor) -> None:
    for size in ((64, 64), (48, 96)):  # its own size, and one that is not square
        pixels = torch.randn(2, 3, *size)
        closed = attribute(view, pixels, prompts, per_layer=True)
        oracle = attribute(view, pixels, prompts, "legrad_autograd", per_layer=True)
        assert closed.shape == (2, len(prompts), len(view.blocks), size[0] // 16, size[1] // 16)
        assert oracle.amax() > 0
        assert (closed - oracle).abs().amax() < 2e-6 * oracle.amax()


@pytest.fixture(scope="module")
def siglip_small(golden: Golden) -> tuple[ViTView, dict[str, Tensor]]:
    values, metadata = golden.values("siglip_small")
    trunk = timm.create_model("vit_base_patch16_224", **metadata["timm"])
    trunk.load_state_dict(golden.weights("siglip_small"))
    view = trunk_view(trunk.eval().requires_grad_(False), "siglip_small")
    return replace(view, empty_prompt=values["empty_text"][0]), values


@pytest.mark.parametrize("method", ["legrad", "legrad_autograd"])
def test_reference_maps(siglip_small: tuple[ViTView, dict[str, Tensor]], method: str) -> None:
    view, values = siglip_small
    for correction, key in (("default", "map_correction_1"), (0.8, "map_correction_1")):
        maps = attribute(view, values["image"], values["text"], method, correction=correction)  # type: ignore[arg-type]
        torch.testing.assert_close(maps[0], values[key], rtol=0, atol=1e-5)
    for off in (None, 0):
        maps = attribute(view, values["image"], values["text"], method, correction=off)
        torch.testing.assert_close(maps[0], values["map_correction_0"], rtol=0, atol=1e-5)
    assert (values["map_correction_1"] - values["map_correction_0"]).abs().amax() > 0.1
    embedding = view.encode(values["image"])
    expected = torch.nn.functional.normalize(values["image_embedding"], dim=-1)
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"class_token": True},
        {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.7},
        {"class_token": True, "fc_norm": True, "act_layer": "gelu_tanh"},
        {"pre_norm": True, "qkv_bias": False, "final_norm": False, "act_layer": "quick_gelu"},
    ],
    ids=str,
)
def test_timm_pooler(shape: dict[str, Any]) -> None:
    trunk = _trunk(**shape)
    view = trunk_view(trunk, "small")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(trunk(pixels), dim=-1)
    torch.testing.assert_close(view.encode(pixels), expected, rtol=0, atol=1e-5)
    _check_closed_form(view, torch.randn(3, 48))


def test_siglip_of_open_clip() -> None:
    original = _siglip()
    model = OpenClip(original, name="siglip")
    pixels, texts = torch.randn(2, 3, 64, 64), ["a dog", "a bell", "a drum"]
    with torch.no_grad():
        expected = original.encode_image(pixels, normalize=True)
        words = original.encode_text(model.tokenizer(texts), normalize=True)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(texts), words, rtol=0, atol=1e-6)
    empty = model.encode_text(["a photo of a"])[0]
    assert model.vision.empty_prompt is not None
    assert torch.equal(model.vision.empty_prompt, empty)
    _check_closed_form(model.vision, words)


@pytest.mark.parametrize("vision", [{}, {"width": 32, "head_width": 8, "ls_init_value": 0.5}], ids=str)
def test_coca(vision: dict[str, Any]) -> None:
    original = _coca(**vision)
    model = OpenClip(original, name="coca")
    pixels, texts = torch.randn(2, 3, 64, 64), ["a dog", "a bell", "a drum"]
    with torch.no_grad():
        expected = original.encode_image(pixels, normalize=True)
        words = original.encode_text(model.tokenizer(texts), normalize=True)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(texts), words, rtol=0, atol=1e-6)
    _check_closed_form(model.vision, words)


def test_coca_follows_the_released_code() -> None:
    """The gradient of `<projection(pooler(Z))[query 0], prompt>` with respect to that query's attention: neither
    ln_post nor an L2 norm. (The released code itself does not run with open_clip's batch-first pooler.)"""
    original = _coca()
    model = OpenClip(original, name="coca")
    visual, pooler = original.visual, original.visual.attn_pool
    pixels, prompt = torch.randn(1, 3, 64, 64), model.encode_text(["a dog"])
    with torch.no_grad():
        tokens = visual._embeds(pixels)
        layers = []
        for block in visual.transformer.resblocks:
            tokens = block(tokens)
            layers.append(tokens)
    expected = torch.zeros(4, 4)
    for tokens in layers:
        x = pooler.ln_k(tokens[0])
        attention = pooler.attn
        q_weight, k_weight, v_weight = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
        q_bias, k_bias, v_bias = attention.in_proj_bias.chunk(3)
        q = (pooler.ln_q(pooler.query) @ q_weight.T + q_bias).view(7, 4, 8).transpose(0, 1)
        k, v = (
            (x @ weight.T + bias).view(17, 4, 8).transpose(0, 1)
            for weight, bias in ((k_weight, k_bias), (v_weight, v_bias))
        )
        weights = (q @ k.mT / 8**0.5).softmax(-1).detach().requires_grad_()
        out = attention.out_proj((weights @ v).transpose(0, 1).flatten(1))
        torch.testing.assert_close(out, pooler(tokens)[0], rtol=0, atol=1e-5)
        (gradient,) = torch.autograd.grad(out[0] @ visual.proj @ prompt[0], weights)
        expected += gradient.relu().mean(0)[0, 1:].view(4, 4)
    maps = attribute(model.vision, pixels, prompt, per_layer=True).sum(2)[0, 0]
    assert (maps - expected).abs().amax() < 2e-6 * expected.amax()
    # neither corrected, unless that is asked for, nor normalized before it is upsampled
    large = min_max(torch.nn.functional.interpolate(expected[None, None], size=(64, 64), mode="bilinear"))
    torch.testing.assert_close(attribute(model.vision, pixels, prompt), large, rtol=0, atol=1e-5)
    assert model.vision.empty_prompt is not None
    assert not torch.equal(attribute(model.vision, pixels, prompt, correction=0.8), large)


def test_other_methods_take_the_own_score_of_coca() -> None:
    """A cosine, whatever LeGrad scores layers by: GradCAM by autograd through open_clip's own modules."""
    original = _coca()
    model = OpenClip(original, name="coca")
    pixels, prompt = torch.randn(1, 3, 64, 64), model.encode_text(["a dog"])
    kept: list[Tensor] = []
    hook = original.visual.transformer.resblocks[1].register_forward_hook(
        lambda module, inputs, output: kept.append(output.requires_grad_())
    )
    score = (original.encode_image(pixels, normalize=True) * prompt).sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    expected = (kept[0].detach() @ gradient.mean(1)[..., None])[0, 1:, 0].relu().view(4, 4)
    actual = attribute(model.vision, pixels, prompt, "gradcam", layers=[1], per_layer=True)[0, 0, 0]
    assert expected.amax() > 0
    assert (actual - expected).abs().amax() < 1e-4 * expected.amax()


def test_correction_by_hand() -> None:
    model = OpenClip(_siglip(), name="siglip")
    view, pixels, prompts = model.vision, torch.randn(2, 3, 64, 96), model.encode_text(["a dog", "a bell"])
    assert view.empty_prompt is not None
    plain = attribute(view, pixels, prompts, per_layer=True).sum(2)
    empty = min_max(attribute(view, pixels, view.empty_prompt[None], per_layer=True).sum(2))
    for threshold in (0.8, 0.3):
        kept = torch.where(empty > threshold, 0, plain)
        assert not torch.equal(kept, plain)
        actual = attribute(view, pixels, prompts, correction=threshold, normalize=False)
        expected = torch.nn.functional.interpolate(kept, size=(64, 96), mode="bilinear")
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-8)
    default = attribute(view, pixels, prompts)
    assert torch.equal(default, attribute(view, pixels, prompts, correction=0.8))
    # the map of the empty prompt itself loses its summit
    itself = attribute(view, pixels, view.empty_prompt[None], normalize=False)
    assert itself.amax() < attribute(view, pixels, view.empty_prompt[None], normalize=False, correction=0).amax()


def test_correction_where_it_cannot_be() -> None:
    model = OpenClip(_siglip(), name="siglip")
    pixels, prompts = torch.randn(1, 3, 64, 64), model.encode_text(["a dog"])
    for view, method, correction, message in (
        (model.vision, "legrad", 1.5, "not a threshold"),
        (model.vision, "legrad", -0.1, "not a threshold"),
        (model.vision, "cosine", 0.8, "not to cosine"),
        (replace(model.vision, empty_prompt=None), "legrad", 0.8, "this model has none"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute(view, pixels, prompts, method, correction=correction)
    # without an empty prompt there is no correction by default
    bare = replace(model.vision, empty_prompt=None)
    assert torch.equal(attribute(bare, pixels, prompts), attribute(model.vision, pixels, prompts, correction=None))


def test_localizer_keeps_the_pooler_too() -> None:
    model = OpenClip(_siglip(), name="siglip")
    image = Image.effect_noise((96, 64), 80).convert("RGB")
    pixels = model.preprocess.whole(image)[None]
    results = {}
    for keep in (True, False):
        localizer = Localizer(model, keep=keep)
        localizer.set_image(image)
        results[keep] = localizer.localize(text=["a dog", "a bell"])
        assert results[keep].heatmaps.shape == (2, 64, 96)
        assert results[keep].layer_maps.shape == (2, 3, 4, 6)
    torch.testing.assert_close(results[True].heatmaps, results[False].heatmaps, rtol=0, atol=1e-6)
    expected = attribute(model.vision, pixels, model.encode_text(["a dog", "a bell"]))
    torch.testing.assert_close(results[True].heatmaps, expected[0], rtol=0, atol=1e-5)
    plain = Localizer(model, correction=None)
    plain.set_image(image)
    uncorrected = attribute(model.vision, pixels, model.encode_text(["a dog"]), correction=None)
    heatmaps = plain.localize(prompts=Prompt(model.encode_text(["a dog"])[0], "dog", "text")).heatmaps
    torch.testing.assert_close(heatmaps, uncorrected[0], rtol=0, atol=1e-5)


def test_chunks_of_prompts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    view = trunk_view(_trunk(), "small")
    pixels, prompts = torch.randn(2, 3, 64, 64), torch.randn(5, 48)
    whole = attribute(view, pixels, prompts, per_layer=True)
    monkeypatch.setitem(legrad_module.CHUNK_BYTES, "cpu", 1)
    one_by_one = attribute(view, pixels, prompts, per_layer=True)
    assert (one_by_one - whole).abs().amax() < 2e-6 * whole.amax()


def test_baselines_of_a_pooler() -> None:
    trunk = _trunk(class_token=True)
    view = trunk_view(trunk, "small")
    pixels, prompts = torch.randn(2, 3, 64, 64), torch.randn(3, 48)
    with torch.no_grad():
        tokens = trunk.forward_features(pixels)[:, 1:]
        pooler = trunk.attn_pool
        q = pooler.q(pooler.latent).view(1, 4, 1, 12)
        k = pooler.kv(tokens).view(2, 16, 2, 4, 12)[:, :, 0].transpose(1, 2)
        attention = (q @ k.mT / 12**0.5).softmax(-1).mean(1).view(2, 1, 1, 4, 4)
        alone = pooler(tokens.reshape(32, 1, 48)).view(2, 16, 48)
        similarity = torch.cosine_similarity(prompts[None, :, None], alone[:, None], dim=-1).view(2, 3, 1, 4, 4)
    raw = attribute(view, pixels, prompts, "raw_attention", per_layer=True)
    torch.testing.assert_close(raw, attention.expand(-1, 3, -1, -1, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        attribute(view, pixels, prompts, "cosine", per_layer=True), similarity, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [
        {"latent_len": 3, "pool_type": "avg"},
        {"latent_len": 2},
        {"qk_norm": True, "norm_layer": nn.LayerNorm},
        {"pos_embed": "abs", "feat_size": 16},
        {"out_features": 0},
        {"q_proj": False, "qkv_bias": False},
    ],
    ids=str,
)
def test_other_poolers_of_timm(options: dict[str, Any]) -> None:
    trunk = _trunk()
    trunk.attn_pool = timm.layers.AttentionPoolLatent(48, num_heads=4, **options)
    trunk = _shaken(trunk).double()
    view = trunk_view(trunk, "small")
    pixels, prompts = torch.randn(2, 3, 64, 64).double(), torch.randn(2, 48).double()
    expected = torch.nn.functional.normalize(timm_features(trunk, pixels), dim=-1)
    torch.testing.assert_close(view.encode(pixels), expected, rtol=0, atol=1e-10)
    oracle = timm_legrad(trunk, pixels, prompts)
    if options == {"latent_len": 2}:
        oracle *= 2  # the second query does not reach the embedding, and the view leaves it out of the mean
    closed = attribute(view, pixels, prompts, per_layer=True).flatten(-2)
    assert (closed - oracle).abs().amax() < 1e-10 * oracle.amax()


def test_unknown_poolers_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="pooling is 'prr'"):
        trunk_view(timm.create_model("vit_base_patch16_224", **{**TRUNK, "global_pool": "prr"}), "odd")
    for vision in ({"attentional_pool": "parallel"}, {"pool_type": "avg"}):
        with pytest.raises(UnsupportedModelError, match="more than the first query"):
            OpenClip(_coca(**vision), name="odd")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "coca_ViT-B-32", "ViT-B-16"])
def test_true_size(name: str) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        original = open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta")
    visual = original.visual.to_empty(device="cpu").eval()
    with torch.no_grad():
        for key, parameter in visual.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.02 + (parameter.ndim == 1 and key.endswith("weight")))
    view = build_view(visual, name)
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        trunk.dynamic_img_size, trunk.patch_embed.strict_img_size = True, False
        trunk.patch_embed.flatten, trunk.patch_embed.output_fmt = False, timm.layers.Format.NHWC
    # the library's own CoCa and CLIP know no other size
    for side in (224, 448) if trunk is not None else (224,):
        pixels = torch.randn(1, 3, side, side)
        with torch.no_grad():
            embedding = visual(pixels)
        expected = torch.nn.functional.normalize(embedding[0] if isinstance(embedding, tuple) else embedding, dim=-1)
        torch.testing.assert_close(view.encode(pixels), expected, rtol=0, atol=1e-5)
        prompts = torch.randn(1, view.embed_dim)
        closed = attribute(view, pixels, prompts, layers=-1, per_layer=True)
        oracle = attribute(view, pixels, prompts, "legrad_autograd", layers=-1, per_layer=True)
        assert (closed - oracle).abs().amax() < 2e-6 * oracle.amax()
