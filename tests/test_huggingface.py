"""transformers' models from folders in the layout that `save_pretrained` writes."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers as tf
from huggingface_small import TEXT, VISION
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from avgrad import CheckpointError, Localizer, PromptError, UnsupportedModelError, load
from avgrad.models.huggingface import HuggingFace

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "dog", "cat", "siren"]
IMAGE = Image.effect_noise((80, 50), 90).convert("RGB")


def _shaken(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def _save(folder: Path, model: Any, processor: Any, texts: bool = False) -> tuple[str, Any]:
    """A model, its image processor and a tokenizer of a few words in a folder: the model's name and the model."""
    model = _shaken(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if texts:
        vocabulary = {word: index for index, word in enumerate(WORDS)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
        tf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            model_max_length=TEXT["max_position_embeddings"],
        ).save_pretrained(folder)
    return f"hf:{folder}", model


def _normalized(embedding: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(embedding.float(), dim=-1)


def _clip_processor(cls: type = tf.CLIPImageProcessor) -> Any:
    return cls(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    config = tf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return _save(tmp_path_factory.mktemp("clip"), tf.CLIPModel(config), _clip_processor(), texts=True)


def test_clip(clip: tuple[str, Any]) -> None:
    name, original = clip
    model = load(name)
    assert isinstance(model, HuggingFace)
    assert (model.name, model.modalities, model.preprocess.size) == (name, ("text",), 32)
    inputs = tf.AutoImageProcessor.from_pretrained(name[3:])(images=IMAGE, return_tensors="pt")
    assert torch.equal(model.pixels(IMAGE), inputs["pixel_values"][0])
    wide = IMAGE.resize((80, 40))  # of this one, the library's crop and ours have the same middle
    torch.testing.assert_close(model.preprocess(wide), model.pixels(wide), rtol=0, atol=0.02)
    with torch.no_grad():
        expected = original.get_image_features(**inputs).pooler_output
    torch.testing.assert_close(model.encode_image(model.pixels(IMAGE)[None]), _normalized(expected), rtol=0, atol=1e-5)
    texts = ["a dog", "a photo of a siren", "cat " * 50]  # the last is longer than the model reads
    tokenizer = tf.AutoTokenizer.from_pretrained(name[3:])
    with torch.no_grad():
        alone = [
            original.get_text_features(**tokenizer(text, truncation=True, return_tensors="pt")).pooler_output
            for text in texts
        ]
    torch.testing.assert_close(model.encode_text(texts), _normalized(torch.cat(alone)), rtol=0, atol=1e-5)


def test_copies_are_independent(clip: tuple[str, Any]) -> None:
    model: Any = load(clip[0])
    pixels = model.pixels(IMAGE)[None]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.encode_image(pixels), model.encode_image(pixels))
        assert torch.equal(copied.encode_text(["a dog"]), model.encode_text(["a dog"]))
        copied.model.vision_model.encoder.layers[0].mlp.fc1.weight.mul_(2)
        with torch.no_grad():
            expected = copied.model.get_image_features(pixels).pooler_output
        torch.testing.assert_close(copied.encode_image(pixels), _normalized(expected), rtol=0, atol=1e-5)
        assert not torch.allclose(copied.encode_image(pixels), model.encode_image(pixels), rtol=0, atol=1e-3)


def test_localizer(clip: tuple[str, Any]) -> None:
    localizer = Localizer(clip[0])
    localizer.set_image(IMAGE)
    result = localizer.localize(text=["a dog", "a siren"])
    assert result.heatmaps.shape == (2, 50, 80)
    assert result.heatmaps.amin() == 0 and result.heatmaps.amax() == 1


@pytest.mark.parametrize("family", ["MetaClip2", "AltCLIP", "ChineseCLIP"])
def test_clip_like(tmp_path: Path, family: str) -> None:
    text = TEXT | {"project_dim": 32}
    config = getattr(tf, f"{family}Config")(text_config=text, vision_config=VISION, projection_dim=16)
    processor = tf.ChineseCLIPImageProcessor if family == "ChineseCLIP" else tf.CLIPImageProcessor
    name, original = _save(tmp_path, getattr(tf, f"{family}Model")(config), _clip_processor(processor), texts=True)
    model = load(name)
    pixels = torch.randn(1, 3, 32, 32)
    tokens = tf.AutoTokenizer.from_pretrained(tmp_path)(
        ["a dog", "a photo of a cat"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = original(pixel_values=pixels, **tokens)
    torch.testing.assert_close(model.encode_image(pixels), _normalized(output.image_embeds), rtol=0, atol=1e-5)
    texts = model.encode_text(["a dog", "a photo of a cat"])
    torch.testing.assert_close(texts, _normalized(output.text_embeds), rtol=0, atol=1e-5)


def test_siglip_pads_texts_as_it_was_trained(tmp_path: Path) -> None:
    processor = tf.SiglipImageProcessor(size={"height": 32, "width": 32})
    model = tf.SiglipModel(tf.SiglipConfig(text_config=TEXT, vision_config=VISION))
    name, original = _save(tmp_path, model, processor, texts=True)
    loaded: Any = load(name)
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(["a dog", "a photo of a cat"], padding="max_length", max_length=20, return_tensors="pt")
    with torch.no_grad():
        expected = original.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(
        loaded.encode_text(["a dog", "a photo of a cat"]), _normalized(expected), rtol=0, atol=1e-5
    )
    assert loaded.preprocess.squash
    torch.testing.assert_close(loaded.preprocess(IMAGE), loaded.pixels(IMAGE), rtol=0, atol=0.02)
    assert torch.equal(loaded.vision.empty_prompt, loaded.encode_text(["a photo of a"])[0])


def test_siglip2_takes_images_of_any_shape(tmp_path: Path) -> None:
    vision = VISION | {"num_patches": 16}
    processor = tf.Siglip2ImageProcessor(patch_size=VISION["patch_size"], max_num_patches=20)
    model = tf.Siglip2Model(tf.Siglip2Config(text_config=TEXT, vision_config=vision))
    name, original = _save(tmp_path, model, processor, texts=True)
    loaded = load(name)
    inputs = tf.AutoImageProcessor.from_pretrained(tmp_path)(images=IMAGE, return_tensors="pt")
    pixels = loaded.pixels(IMAGE)
    assert list(pixels.shape[1:]) == (inputs["spatial_shapes"][0] * VISION["patch_size"]).tolist()
    assert pixels.shape[1] != pixels.shape[2]
    with torch.no_grad():  # with the padding that its processor adds
        expected = original.get_image_features(**inputs).pooler_output
    torch.testing.assert_close(loaded.encode_image(pixels[None]), _normalized(expected), rtol=0, atol=1e-5)


def test_a_classifiers_prompts_are_its_classes(tmp_path: Path) -> None:
    labels = {0: "tabby, tabby cat", 1: "siren", 2: "tiger cat"}
    config = tf.DeiTConfig(**VISION, id2label=labels, label2id={label: index for index, label in labels.items()})
    model = tf.DeiTForImageClassificationWithTeacher(config)
    name, original = _save(tmp_path, model, tf.ViTImageProcessor(size={"height": 32, "width": 32}))
    loaded: Any = load(name)
    assert loaded.modalities == ("text",) and loaded.class_names == list(labels.values())
    rows = torch.cat([original.cls_classifier.weight, original.distillation_classifier.weight], 1).detach()
    torch.testing.assert_close(loaded.encode_text(["siren", "tabby", "2"]), _normalized(rows[[1, 0, 2]]))
    with pytest.raises(PromptError, match="has no class 'sirene'; close are siren"):
        loaded.encode_text(["sirene"])
    with pytest.raises(PromptError, match="has no class 3: its classes are 0 to 2"):
        loaded.encode_text(["3"])
    assert torch.equal(copy.deepcopy(loaded).encode_text(["siren"]), loaded.encode_text(["siren"]))
    # the features, by the rows, are the logits without their biases
    pixels = loaded.pixels(IMAGE)[None]
    with torch.no_grad():
        bias = (original.cls_classifier.bias + original.distillation_classifier.bias) / 2
        features = loaded.vision.output(loaded.vision.tokens(pixels))
        torch.testing.assert_close(features @ rows.T / 2 + bias, original(pixels).logits, rtol=0, atol=1e-5)


def test_classes_without_names(tmp_path: Path) -> None:
    model = tf.ViTForImageClassification(tf.ViTConfig(**VISION, num_labels=3))
    loaded = load(_save(tmp_path, model, tf.ViTImageProcessor(size={"height": 32, "width": 32}))[0])
    assert loaded.encode_text(["2"]).shape == (1, 32)
    with pytest.raises(PromptError, match="have no names; expected an index"):
        loaded.encode_text(["LABEL_1"])


def test_without_classes_and_texts(tmp_path: Path) -> None:
    processor = tf.BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    name, _ = _save(tmp_path, tf.Dinov2Model(tf.Dinov2Config(**VISION)), processor)
    loaded = load(name)
    assert loaded.modalities == ()
    with pytest.raises(PromptError, match="takes no texts; images and embeddings are accepted"):
        loaded.encode_text(["a dog"])
    localizer = Localizer(loaded)
    localizer.set_image(IMAGE)
    assert localizer.localize(image=[IMAGE]).heatmaps.shape == (1, 50, 80)


def test_weights_that_a_checkpoint_lacks(tmp_path: Path) -> None:
    model = tf.ViTForMaskedImageModeling(tf.ViTConfig(**VISION))
    name, original = _save(tmp_path, model, tf.ViTImageProcessor(size={"height": 32, "width": 32}))
    loaded: Any = load(name)  # the bare model, whose pooler is not in the checkpoint and must not be random
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = original.vit(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(loaded.encode_image(pixels), _normalized(expected), rtol=0, atol=1e-5)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vit.encoder.layer.1.intermediate.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack layers\.1\.mlp\.fc1\.weight"):
        load(name)


def test_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: tuple[str, Any]) -> None:
    tf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="cannot be explained: it is a ResNetModel, which has no view"):
        load(f"hf:{tmp_path}")  # there are no weights
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(CheckpointError, match="takes no checkpoint; name its folder"):
        load(clip[0], checkpoint=tmp_path / "weights.pt")

    def used_up(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="not enough memory"):
        patch.setattr(tf.CLIPModel, "from_pretrained", used_up)
        load(clip[0])
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(UnsupportedModelError, match=r"needs the transformers package: `pip install"):
        load(clip[0])
