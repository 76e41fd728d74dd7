"""The public face on real images and sounds, with the bundled model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import avgrad
from avgrad import CheckpointError, Localizer, MediaError, Prompt, UnsupportedModelError
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
    torch.testing.assert_close(result.prompts[0].embedding, model.encode_audio(*_sound(0)))


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
    for source in (path, str(path), path.read_bytes(), scene, np.asarray(scene)):
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


def test_result_is_kept_on_disk(model: ImageBind, scene: Image.Image, tmp_path: Path) -> None:
    result = avgrad.localize(scene, text=["a bell / <b>", "a dog"], model=model)
    files = result.save(tmp_path / "new" / "out", note="x")
    assert sorted(file.name for file in files) == sorted(file.name for file in (tmp_path / "new" / "out").iterdir())
    assert {file.name for file in files} == {
        "overlay_0_a_bell_b.png",
        "overlay_1_a_dog.png",
        "heatmaps.npz",
        "result.json",
    }
    assert Image.open(files[0]).size == scene.size
    arrays = np.load(tmp_path / "new" / "out" / "heatmaps.npz")
    np.testing.assert_allclose(arrays["heatmaps"], result.heatmaps, atol=1e-3)
    assert arrays["labels"].tolist() == ["a bell / <b>", "a dog"]
    document = json.loads((tmp_path / "new" / "out" / "result.json").read_text())
    assert document["note"] == "x"
    assert document["prompts"][1]["label"] == "a dog"
    assert document["prompts"][1]["peak"] == list(result.peak(1))
    column, row = result.peak(1)
    assert result.heatmaps[1, row, column] == 1
    assert torch.equal(result.mask(0.7), result.heatmaps >= 0.7)


def test_overlay_is_hot_where_the_heatmap_is(model: ImageBind, scene: Image.Image) -> None:
    result = avgrad.localize(scene, text="a bell", model=model)
    overlay, original = np.asarray(result.overlay(0), dtype=float), np.asarray(scene, dtype=float)
    change = np.abs(overlay - original).sum(-1)
    heat = result.heatmaps[0].numpy()
    assert change[heat < 0.001].max(initial=0) < 30
    assert change[heat > 0.8].mean() > 60
    assert np.array_equal(np.asarray(result.overlay(0, opacity=0)), np.asarray(scene))


def test_mistakes_are_said(model: ImageBind, scene: Image.Image, tmp_path: Path) -> None:
    localizer = Localizer(model)
    with pytest.raises(RuntimeError, match="set_image first"):
        localizer.localize(text="a bell")
    with pytest.raises(MediaError, match="does not exist"):
        localizer.set_image(tmp_path / "none.png")
    localizer.set_image(scene)
    with pytest.raises(MediaError, match="nothing to look for"):
        localizer.localize()
    with pytest.raises(MediaError, match="prompts belong to the model"):
        localizer.localize(prompts=Prompt(torch.ones(7), "seven", "embedding"))
    with pytest.raises(MediaError):
        localizer.localize(audio=(torch.zeros(1, 16_000), 16_000))
    with pytest.raises(ValueError, match="unknown method"):
        Localizer(model, method="magic")
    with pytest.raises(ValueError, match="layers 0 to"):
        Localizer(model, layers=99)
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        Localizer(model, pooling="max")  # type: ignore[arg-type]
    deaf = avgrad.load("mini", towers=["vision", "text"])
    with pytest.raises(UnsupportedModelError, match="understands text, so it cannot look for a sound"):
        avgrad.localize(scene, audio=_sound(0), model=deaf)
    with pytest.raises(CheckpointError, match="without its audio tower"):
        deaf.encode_audio(*_sound(0))  # type: ignore[union-attr]


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
