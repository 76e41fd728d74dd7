"""The public face on real images and sounds, with the bundled model."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import avgrad
from avgrad import CheckpointError, InputError, Localizer, MediaError, Prompt, PromptError, UnsupportedModelError
from avgrad.encoders.image import Preprocess
from avgrad.media import open_audio
from avgrad.models.imagebind import ImageBind
from avgrad.scenes import CLASSES, draw_scene, mix_sound, scene_rng


@pytest.fixture(scope="module")
def model() -> ImageBind:
    loaded = avgrad.load("mini")
    assert isinstance(loaded, ImageBind)
    return loaded


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return Image.fromarray(draw_scene(scene_rng("test localizer", 0, 0), 200, classes=[0, 13]).image)


def _sound(object_class: int) -> tuple[torch.Tensor, int]:
    return torch.from_numpy(mix_sound(object_class, scene_rng("test localizer", 1, object_class), 3.0))[None], 16_000


def test_prompts_of_all_modalities(model: ImageBind, scene: Image.Image) -> None:
    localizer = Localizer(model)
    localizer.set_image(scene)
    named = Prompt(torch.ones(model.config.out_embed_dim), "ones", "embedding")
    result = localizer.localize(audio=[_sound(0), _sound(13)], text="a dog", speech=_sound(13), prompts=named)
    assert [prompt.modality for prompt in result.prompts] == ["audio", "audio", "speech", "text", "embedding"]
    assert [prompt.label for prompt in result.prompts] == ["audio 1", "audio 2", "speech 1", "a dog", "ones"]
    assert result.heatmaps.shape == (5, 200, 200)
    assert result.heatmaps.dtype == torch.float32
    for heatmap in result.heatmaps:
        assert heatmap.min() == 0
        assert heatmap.max() == 1
    assert result.scores.shape == (5,)
    assert result.layers == list(range(model.config.vision_num_blocks))
    grid = model.config.image_size // model.config.kernel_size[-1]
    assert result.layer_maps.shape == (5, len(result.layers), grid, grid)
    # scores are cosine similarities of the model's own embeddings
    pixels = model.preprocess.whole(scene)[None]
    expected = model.encode_image(pixels) @ model.encode_text(["a dog"]).T
    torch.testing.assert_close(result.scores[3:4], expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(result.prompts[0].embedding, model.encode_sound(open_audio(_sound(0))))


def test_keeping_and_not_keeping_agree(model: ImageBind, scene: Image.Image) -> None:
    kept, streamed = Localizer(model, layers=-3), Localizer(model, layers=-3, keep=False)
    for localizer in (kept, streamed):
        localizer.set_image(scene)
    first, again = kept.localize(text=["a bell"]), kept.localize(text=["a dog", "a bell"])
    other = streamed.localize(text=["a dog", "a bell"])
    torch.testing.assert_close(again.heatmaps, other.heatmaps, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.scores, other.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(first.heatmaps[0], again.heatmaps[1], rtol=0, atol=1e-5)
    one_call = avgrad.localize(scene, text=["a dog", "a bell"], model=model, layers=-3)
    torch.testing.assert_close(one_call.heatmaps, other.heatmaps, rtol=0, atol=0)


def test_bfloat16_for_the_backward_part(model: ImageBind, scene: Image.Image) -> None:
    exact, kept = Localizer(model), Localizer(model, backward_dtype=torch.bfloat16)
    for localizer in (exact, kept):
        localizer.set_image(scene)
    expected, rough = exact.localize(text=["a dog", "a bell"]), kept.localize(text=["a dog", "a bell"])
    assert 0 < (rough.heatmaps - expected.heatmaps).abs().amax() < 0.01
    assert torch.equal(rough.scores, expected.scores)
    one_call = avgrad.localize(scene, text=["a dog", "a bell"], model=model, backward_dtype=torch.bfloat16)
    torch.testing.assert_close(one_call.heatmaps, rough.heatmaps, rtol=0, atol=0)
    with pytest.raises(ValueError, match="'gradcam' has no option 'backward_dtype'"):
        Localizer(model, method="gradcam", backward_dtype=torch.bfloat16)


def test_a_further_prompt_does_not_repeat_the_forward_pass(model: ImageBind, scene: Image.Image) -> None:
    passes = []
    stem = model.modality_preprocessors["vision"]
    handle = stem.register_forward_hook(lambda *_: passes.append(1))
    try:
        localizer = Localizer(model)
        localizer.set_image(scene)
        for text in ("a bell", "a dog", "a drum"):
            localizer.localize(text=text)
        assert len(passes) == 1
    finally:
        handle.remove()


@pytest.mark.parametrize("method", ["legrad", "legrad_autograd", "raw_attention", "cosine"])
def test_methods_and_shapes(model: ImageBind, scene: Image.Image, method: str) -> None:
    wide = scene.resize((301, 150))
    result = avgrad.localize(wide, text="a bell", model=model, method=method, size=96)
    assert result.heatmaps.shape == (1, 150, 301)
    assert result.layer_maps.shape[-2:] == (12, 24)
    assert result.method == method


def test_image_sources(model: ImageBind, scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    scene.save(path)
    localizer = Localizer(model)
    results = []
    array = np.asarray(scene)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for source in (path, str(path), path.read_bytes(), scene, array, array / 255, tensor, tensor / 255):
        localizer.set_image(source)
        results.append(localizer.localize(text="a bell").heatmaps)
    for heatmaps in results[1:]:
        assert torch.equal(heatmaps, results[0])


def test_audio_sources(model: ImageBind, scene: Image.Image, tmp_path: Path) -> None:
    waveform, rate = _sound(5)
    path, buffer = tmp_path / "tick tock.wav", io.BytesIO()
    soundfile.write(path, waveform[0].numpy(), rate, subtype="FLOAT")
    soundfile.write(buffer, waveform[0].numpy(), rate, subtype="FLOAT", format="WAV")
    result = avgrad.localize(scene, audio=[path, buffer.getvalue(), (waveform, rate)], model=model)
    assert [prompt.label for prompt in result.prompts] == ["tick tock.wav", "audio 2", "audio 3"]
    for prompt in result.prompts[1:]:
        torch.testing.assert_close(prompt.embedding, result.prompts[0].embedding, rtol=0, atol=1e-5)


def test_mistakes_are_said(model: ImageBind, scene: Image.Image, tmp_path: Path) -> None:
    localizer = Localizer(model)
    with pytest.raises(InputError, match="set_image first"):
        localizer.localize(text="a bell")
    with pytest.raises(MediaError, match="does not exist"):
        localizer.set_image(tmp_path / "none.png")
    localizer.set_image(scene)
    no_prompts: list[dict[str, Any]] = [{}, {"text": []}, {"audio": [], "prompts": ()}]
    for nothing in no_prompts:
        with pytest.raises(PromptError, match="there is no prompt; give at least one of"):
            localizer.localize(**nothing)
    with pytest.raises(PromptError, match="prompts belong to the model"):
        localizer.localize(prompts=Prompt(torch.ones(7), "seven", "embedding"))
    dog = localizer.encode(text="dog")[0]
    with pytest.raises(PromptError, match=r"'dog - dog' has an embedding of length 0\.0 and so no direction"):
        localizer.localize(prompts=dog - dog)
    with pytest.raises(PromptError, match="length nan"):
        localizer.localize(prompts=Prompt(torch.full_like(dog.embedding, float("nan")), "nan", "embedding"))
    with pytest.raises(PromptError, match="prompts hold a str"):
        localizer.localize(prompts="a dog")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="text is empty"):
        localizer.localize(text=["a dog", " "])
    with pytest.raises(MediaError, match="silent"):
        localizer.localize(audio=(torch.zeros(1, 16_000), 16_000))
    with pytest.raises(MediaError, match="of type Tensor"):  # without its sample rate
        localizer.localize(audio=torch.zeros(16_000))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="positional argument"):
        localizer.localize("a dog")  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        avgrad.localize(scene, "a dog", model=model)  # type: ignore[misc]
    with pytest.raises(TypeError, match="model"):
        avgrad.localize(scene, text="a dog")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="unknown method"):
        Localizer(model, method="magic")
    with pytest.raises(InputError, match="layers 0 to"):
        Localizer(model, layers=99)
    with pytest.raises(InputError, match="unknown pooling 'max'"):
        Localizer(model, pooling="max")  # type: ignore[arg-type]
    for size in (0, -3, 2.5, "large"):
        with pytest.raises(InputError, match="is not an integer of at least 1"):
            Localizer(model, size=size)  # type: ignore[arg-type]
    deaf = avgrad.load("mini", towers=["vision", "text"])
    with pytest.raises(UnsupportedModelError, match="takes text and image prompts, not sounds"):
        avgrad.localize(scene, audio=_sound(0), model=deaf)
    with pytest.raises(CheckpointError, match="without its audio tower"):
        deaf.encode_sound(open_audio(_sound(0)))  # type: ignore[attr-defined]


def test_methods_and_options_of_one_call(model: ImageBind, scene: Image.Image) -> None:
    localizer = Localizer(model, layers=-3)
    localizer.set_image(scene)
    text, before = ["a bell", "a dog"], localizer.localize(text="a dog")
    for arguments in (
        {"method": "gradcam"},
        {"relu": False},
        {"layers": [1, 2]},
        {"layers": None},
        {"pooling": "cls"},
        {"method": "rollout", "layers": -2},
        {"backward_dtype": torch.bfloat16},
    ):
        found = localizer.localize(text=text, **arguments)  # type: ignore[arg-type]
        expected = avgrad.localize(scene, text=text, model=model, **{"layers": -3, **arguments})  # type: ignore[arg-type]
        torch.testing.assert_close(found.heatmaps, expected.heatmaps, rtol=0, atol=1e-5)
        assert (found.method, found.layers, found.options) == (expected.method, expected.layers, expected.options)
    assert torch.equal(localizer.localize(text="a dog").maps, before.maps)
    with pytest.raises(InputError, match="'gradcam' has no option 'relu'"):
        localizer.localize(text="a dog", method="gradcam", relu=False)
    with pytest.raises(InputError, match="has no option 'reluu'"):
        localizer.localize(text="a dog", reluu=False)


def test_another_method_leaves_the_options_of_the_first(model: ImageBind, scene: Image.Image) -> None:
    localizer = Localizer(model, relu=False)
    localizer.set_image(scene)
    own = {"pooling": "mean", "size": None, "correction": None}
    assert localizer.localize(text="a dog").options == {**own, "relu": False}
    assert localizer.localize(text="a dog", method="gradcam").options == own
    assert localizer.localize(text="a dog", relu=True).options == {**own, "relu": True}


def test_a_result_says_what_repeats_it(model: ImageBind, scene: Image.Image) -> None:
    result = avgrad.localize(scene, text="a dog", model=model, method="gradcam", size=96, layers=-4)
    assert result.layers == [3]  # of the four asked for, the one that the method explains
    assert result.layer_maps.shape[1] == 1
    again = avgrad.localize(
        scene, prompts=result.prompts, model=model, method=result.method, layers=result.layers, **result.options
    )
    assert torch.equal(again.heatmaps, result.heatmaps)
    assert (result.device, result.dtype) == ("cpu", "float32")
    assert result.versions["torch"] == torch.__version__


def test_heatmaps_are_those_of_attribute(model: ImageBind, scene: Image.Image) -> None:
    wide = scene.resize((301, 150))
    result = avgrad.localize(wide, text=["a bell", "a dog"], model=model)
    pixels = model.preprocess.whole(wide)[None]
    prompts = torch.stack([prompt.direction for prompt in result.prompts])
    small = avgrad.attribute(model, pixels, prompts)
    assert torch.equal(replace(result, image=wide.resize((small.shape[3], small.shape[2]))).heatmaps, small[0])


def test_numbers_of_numpy(model: ImageBind, scene: Image.Image) -> None:
    waveform, rate = _sound(5)
    localizer = Localizer(model, layers=np.int64(-2), size=np.int32(96))  # type: ignore[arg-type]
    localizer.set_image(scene)
    assert localizer.localize(text="a bell").layers == [4, 5]
    for sample_rate in (rate, np.int64(rate), np.float32(rate), float(rate)):
        prompts = localizer.encode(audio=(waveform.numpy(), sample_rate))  # type: ignore[arg-type]
        assert len(prompts) == 1
        torch.testing.assert_close(
            prompts[0].embedding, model.encode_sound(open_audio((waveform, rate))), rtol=0, atol=1e-6
        )
    assert len(localizer.encode(audio=((waveform, rate), (waveform, rate)))) == 2


def test_one_template_or_several(model: ImageBind, scene: Image.Image) -> None:
    localizer = Localizer(model)
    one, same = localizer.encode(text="dog", templates="a {}"), localizer.encode(text="a dog")
    torch.testing.assert_close(one[0].embedding, same[0].embedding)
    assert one[0].label == "dog"
    with pytest.raises(PromptError, match=r"has no \{\}"):
        localizer.encode(text="dog", templates="a photo")


def test_a_model_that_is_moved_stays_right(scene: Image.Image) -> None:
    model = avgrad.load("mini", towers=["vision", "text"])
    assert isinstance(model, ImageBind)
    localizer = Localizer(model)
    localizer.set_image(scene)
    exact = localizer.localize(text="a dog")
    model.to(torch.bfloat16)
    rough = localizer.localize(text="a dog")
    assert rough.dtype == "bfloat16"
    assert 0 < (rough.heatmaps - exact.heatmaps).abs().amax() < 0.2
    model.to(torch.float32)
    assert localizer.localize(text="a dog").dtype == "float32"


def test_a_failed_image_leaves_the_last_one(model: ImageBind, scene: Image.Image) -> None:
    localizer = Localizer(model)
    localizer.set_image(scene)
    before = localizer.localize(text="a dog").heatmaps
    with pytest.raises(MediaError):
        localizer.set_image(b"not an image")
    assert torch.equal(localizer.localize(text="a dog").heatmaps, before)


def test_import_is_light() -> None:
    """Nothing heavy is imported with the package, and each name of the public face is there."""
    import subprocess
    import sys

    code = "import avgrad, sys; print([m for m in ('torch', 'open_clip', 'librosa', 'matplotlib') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
    for name in ("load", "localize", "Localizer", "Localization", "Prompt", "attribute"):
        assert getattr(avgrad, name)
    assert len(CLASSES) >= 16


def test_models_that_take_one_size_alone_see_the_whole_image() -> None:
    preprocess = Preprocess(size=32, patch_size=16, image_size=(32, 48))
    half = Image.new("RGB", (200, 300))
    half.paste((255, 255, 255), (0, 150, 200, 300))
    for size in (None, 32):
        pixels = preprocess.whole(half, size)
        assert pixels.shape == (3, 32, 48)
        assert (pixels[:, 20:] > pixels[:, :12]).all()  # the lower half is white
    with pytest.raises(InputError, match="size=64 is not accepted"):
        preprocess.whole(half, 64)
