"""PE-AV against transformers' own model: image, video, sound and text embeddings, and LeGrad by autograd through it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pe_av_small as small
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PeAudioFeatureExtractor

import avgrad
from avgrad.encoders.image import Preprocess
from avgrad.errors import InputError, MediaError, UnsupportedModelError
from avgrad.media import Audio, open_audio
from avgrad.models.pe_av import PeAv
from avgrad.models.pe_av_audio import Waveforms
from avgrad.models.pe_av_files import build, set_weights

SIZES = list(small.SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save(tmp_path_factory.mktemp("pe_av"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PeAv:
    return PeAv.from_folder(folder, name="pe-av-small")


def wrap(size: str, dtype: torch.dtype = torch.float32) -> tuple[PeAv, Any]:
    """Our model on a copy of the original's own weights, and that original."""
    own = copy.deepcopy(small.original(size)).to(dtype)
    model, state, processor = build(small.config(size)), own.state_dict(), small.processor()
    set_weights(model, {key: state[key] for key in model.state_dict()})
    image = Preprocess(size=small.SIDE, patch_size=14, squash=True)
    return PeAv(model, image, processor.feature_extractor, processor.tokenizer), own


def prompts_of(width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return F.normalize(torch.randn(3, width, generator=generator, dtype=dtype), dim=-1)


TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])


# ------------------------------------------------------------------ images and videos


@DTYPES
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_frames", [1, 5])
def test_embedding_is_the_librarys(size: str, num_frames: int, dtype: torch.dtype) -> None:
    ours, own = wrap(size, dtype)
    frames = torch.randn(2, num_frames, 3, 28, 28, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = small.video_embedding(own.video_model, frames).repeat_interleave(num_frames, dim=0)
    found = ours.video_view(num_frames).encode(frames.flatten(0, 1))
    assert torch.allclose(found, expected, rtol=0, atol=TOLERANCES[dtype])
    if num_frames == 1:
        assert torch.allclose(ours.encode_image(frames[:, 0]), expected.float(), rtol=0, atol=1e-5)


@DTYPES
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_frames", [1, 5])
def test_legrad_is_autograd_through_the_librarys_modules(size: str, num_frames: int, dtype: torch.dtype) -> None:
    ours, own = wrap(size, dtype)
    frames = torch.randn(2, num_frames, 3, 28, 28, dtype=dtype, generator=torch.Generator().manual_seed(1))
    prompts = prompts_of(ours.vision.embed_dim, dtype)
    expected = torch.cat([small.legrad(own.video_model, video[None], prompts) for video in frames])
    found = avgrad.attribute(ours.video_view(num_frames), frames.flatten(0, 1), prompts, per_layer=True)
    scale = float(expected.max())
    assert scale > 1e-4
    error = (found.flatten(-2) - expected).abs().max()
    assert float(error) <= TOLERANCES[dtype] * max(scale, 1 if dtype == torch.float32 else scale)


def test_other_sizes_and_methods_agree_with_autograd_over_the_view(model: PeAv) -> None:
    view = model.video_view(2)
    pixels = torch.randn(4, 3, 42, 28, generator=torch.Generator().manual_seed(2))
    prompts = prompts_of(view.embed_dim, torch.float32)
    found = avgrad.attribute(view, pixels, prompts, per_layer=True)
    expected = avgrad.attribute(view, pixels, prompts, method="legrad_autograd", per_layer=True)
    assert found.shape == (4, 3, 3, 3, 2)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    gradcam = avgrad.attribute(view, pixels, prompts, method="gradcam")
    assert gradcam.shape == (4, 3, 42, 28) and torch.isfinite(gradcam).all()


def test_videos_in_one_batch_do_not_mix(model: PeAv) -> None:
    """Also where the engine takes the images in groups."""
    view = model.video_view(3)
    pixels = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    prompts = prompts_of(view.embed_dim, torch.float32)
    together = avgrad.attribute(view, pixels, prompts, per_layer=True)
    apart = torch.cat([avgrad.attribute(view, video, prompts, per_layer=True) for video in pixels.split(3)])
    assert torch.allclose(together, apart, rtol=0, atol=1e-6)
    assert [view.whole_videos(n) for n in (0, 1, 3, 5, 7)] == [3, 3, 3, 3, 6]


def test_frames_influence_each_other(model: PeAv) -> None:
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    prompts = prompts_of(model.vision.embed_dim, torch.float32)
    alone = avgrad.attribute(model, pixels, prompts, per_layer=True)
    video = avgrad.attribute(model.video_view(2), pixels, prompts, per_layer=True)
    assert float((alone - video).abs().max()) > 1e-3 * float(alone.max())


def test_prepared_forward_pass_serves_later_prompts(model: PeAv) -> None:
    from avgrad.engine.attribute import explain, prepare

    view = model.video_view(2)
    pixels = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(6))
    prompts = prompts_of(view.embed_dim, torch.float32)
    prepared = prepare(view, pixels)
    found = explain(prepared, prompts, correction=None).heatmaps
    assert torch.allclose(found, avgrad.attribute(view, pixels, prompts, correction=None), rtol=0, atol=1e-5)


def test_wrong_numbers_of_frames_are_refused(model: PeAv) -> None:
    prompts = prompts_of(model.vision.embed_dim, torch.float32)
    with pytest.raises(InputError, match="pixels are 3 images; expected a multiple of 2"):
        avgrad.attribute(model.video_view(2), torch.zeros(3, 3, 28, 28), prompts)
    with pytest.raises(InputError, match="num_frames=0"):
        model.video_view(0)


def test_view_of_the_librarys_modules() -> None:
    own = small.original()
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(7))
    for module in (own, own.video_model):
        found = avgrad.view(module).encode(pixels)
        assert torch.allclose(found, small.video_embedding(own.video_model, pixels[:, None]), rtol=0, atol=1e-5)
    hooked = copy.deepcopy(own)
    hooked.video_model.video_encoder.layers[0].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="forward hooks"):
        avgrad.view(hooked)


def test_models_can_be_copied_pickled_and_cast(model: PeAv) -> None:
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(8))
    expected = model.encode_image(pixels)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.encode_image(pixels), expected)
        assert torch.equal(twin.encode_text(["a dog"]), model.encode_text(["a dog"]))
    twin.model.to(torch.bfloat16)
    assert twin.dtype == torch.bfloat16
    assert float((twin.encode_image(pixels) - expected).norm()) < 0.1


def test_preprocessing_is_the_librarys(model: PeAv) -> None:
    """The library resizes with torchvision, which rounds the resized image to whole levels elsewhere than Pillow."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (37, 61, 3), dtype=np.uint8))
    frames = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None]
    expected = small.processor().video_processor(videos=[frames], return_tensors="pt")["pixel_values_videos"][0, 0]
    assert torch.allclose(model.pixels(image), expected, rtol=0, atol=1.01 * 2 / 255)


# ------------------------------------------------------------------ texts


def library_output(own: Any, texts: list[str], waveforms: Tensor, frames: Tensor) -> Any:
    """transformers' own forward pass, with its option to read texts in front of the text tower's final norm."""
    own.text_model.config.tie_last_hidden_states = False
    tokens = small.tokenizer()(texts, padding=True, return_tensors="pt")
    inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        return own(**inputs, input_values=waveforms, pixel_values_videos=frames)


@pytest.mark.parametrize("size", SIZES)
def test_pairs_are_those_trained_together(size: str) -> None:
    """Cosines of our embeddings, times the lengths of the library's, are the library's own logits."""
    # in float32 the codec's numbers depend on the size of the batch, and the library takes both sounds at once
    ours, own = wrap(size, torch.float64)
    for name, owner in {"text_audio": own.audio_model, "text_video": own.video_model, "audio_video": own}.items():
        getattr(owner, f"{name}_logit_scale").fill_(1)
        getattr(owner, f"{name}_logit_bias").fill_(0)
    texts, waveforms = ["a dog barking", "the voice"], torch.stack([noise(0.08, seed=seed) for seed in (0, 1)]).double()
    frames = torch.randn(2, 1, 3, 28, 28, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    output = library_output(own, texts, waveforms, frames)
    embeddings = {
        "video": ours.encode_image(frames[:, 0]),
        "audio": ours.encode_audio(list(waveforms)),
        "text_video": ours.encode_text(texts),
        "text_audio": ours.encode_text_for_sounds(texts),
    }
    for name, embedding in embeddings.items():
        expected = F.normalize(output[f"{name}_embeds"], dim=-1).float()
        assert torch.allclose(embedding, expected, rtol=0, atol=1e-6), name
    pairs = {
        "audio_video": ("audio", "video"),
        "video_text": ("video", "text_video"),
        "audio_text": ("audio", "text_audio"),
    }
    for name, (left, right) in pairs.items():
        lengths = [output[f"{key}_embeds"].norm(dim=-1) for key in (left, right)]
        expected = (output[f"logits_{name}"] / lengths[0][:, None] / lengths[1]).float()
        assert torch.allclose(embeddings[left] @ embeddings[right].T, expected, rtol=0, atol=1e-6), name


def test_long_texts_are_cut(model: PeAv) -> None:
    long = model.encode_text(["dog " * 510, "dog " * 5000])
    assert torch.allclose(long[0], long[1], rtol=0, atol=1e-5)


# ------------------------------------------------------------------ sounds


def library_sound(own: Any, waveform: Tensor) -> Tensor:
    """transformers' own embedding `[D]`, at unit length, of a mono waveform at 48 kHz."""
    inputs = PeAudioFeatureExtractor()(waveform.numpy(), sampling_rate=48_000, return_tensors="pt")
    with torch.no_grad():
        return F.normalize(own.get_audio_embeds(inputs["input_values"], inputs["padding_mask"]), dim=-1)[0]


def noise(seconds: float, rate: int = 48_000, channels: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(channels, round(seconds * rate), generator=generator)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seconds", [0.025, 0.5, 1.28])
def test_short_sound_is_the_librarys(size: str, seconds: float) -> None:
    ours, own = wrap(size)
    waveform = noise(seconds)
    found = ours.encode_sound(open_audio((waveform, 48_000)))
    assert torch.allclose(found, library_sound(own, waveform[0]), rtol=0, atol=1e-5)
    stereo = torch.cat([waveform + 0.05, waveform - 0.05])
    assert torch.allclose(ours.encode_sound(open_audio((stereo, 48_000))), found, rtol=0, atol=1e-5)


def test_sound_is_resampled(model: PeAv) -> None:
    from torchaudio.functional import resample

    waveform = noise(0.7, rate=16_000)
    found = model.audio_preprocess(open_audio((waveform, 16_000)))
    expected = model.audio_preprocess.clip(resample(waveform, 16_000, 48_000))
    assert found.shape == expected.shape == (1, 34_560)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("seconds", "starts"), [(10, [0]), (10.5, [0, 0.5]), (20, [0, 10]), (25, [0, 7.5, 15]), (3600, [0, 1795, 3590])]
)
def test_windows(seconds: float, starts: list[float]) -> None:
    windows = Waveforms(PeAudioFeatureExtractor()).windows(round(48_000 * seconds))
    length = min(480_000, round(48_000 * seconds))
    assert windows == [(round(48_000 * start), round(48_000 * start) + length) for start in starts]


def test_long_sound_is_the_mean_of_its_windows(model: PeAv) -> None:
    waveform = noise(11, rate=48_000)
    inputs = model.audio_preprocess(open_audio((waveform, 48_000)))
    assert inputs.shape == (2, 480_000)
    own = small.original()
    parts = [library_sound(own, waveform[0, start : start + 480_000]) for start in (0, 48_000)]
    expected = F.normalize(torch.stack(parts).mean(0), dim=-1)
    assert torch.allclose(model.encode_audio([inputs])[0], expected, rtol=0, atol=1e-5)


def test_an_hour_is_read_in_windows(monkeypatch: pytest.MonkeyPatch, model: PeAv) -> None:
    read = Audio.read
    frames: list[int] = []

    def counted(self: Audio, start: int, stop: int) -> Tensor:
        frames.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(Audio, "read", counted)
    hour = np.tile(np.sin(np.arange(8000)).astype(np.float16) / 2, 3600)
    inputs = model.audio_preprocess(open_audio((hour, 8000)))
    assert inputs.shape == (3, 480_000)
    assert sum(frames) < 31 * 8000


def test_part_of_a_sound(model: PeAv) -> None:
    waveform = noise(2)
    part = model.audio_preprocess(open_audio((waveform, 48_000)), (0.5, 1.0))
    expected = model.audio_preprocess(open_audio((waveform[:, 24_000:48_000], 48_000)))
    assert torch.equal(part, expected)
    with pytest.raises(MediaError):
        model.audio_preprocess(open_audio((waveform, 48_000)), (1.5, 3.0))


def test_silence(model: PeAv) -> None:
    with pytest.raises(MediaError, match="silent"):
        model.audio_preprocess(open_audio((torch.zeros(1, 48_000), 48_000)))
    assert model.audio_preprocess.clip(torch.zeros(2, 1000)).shape == (1, 1920)


def test_sounds_of_several_lengths(model: PeAv) -> None:
    sounds = [noise(seconds, seed=index) for index, seconds in enumerate((0.2, 0.5, 0.2, 1.0))]
    inputs = [model.audio_preprocess.clip(sound) for sound in sounds]
    inputs[1] = torch.cat([inputs[1], inputs[1].flip(-1)])
    together = model.encode_audio(inputs)
    apart = torch.cat([model.encode_audio([sound]) for sound in inputs])
    assert torch.allclose(together, apart, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ through the public face


def test_all_kinds_of_prompts(model: PeAv) -> None:
    localizer = avgrad.Localizer(model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    localizer.set_image(image)
    sound = (noise(0.5), 48_000)
    result = localizer.localize(audio=sound, speech=sound, text="a dog", image=image)
    assert result.heatmaps.shape == (4, 40, 60)
    assert float(result.scores[0]) == pytest.approx(float(result.scores[1]), abs=1e-6)
    vision = model.encode_image(model.preprocess.whole(image)[None])[0]
    expected = [model.encode_sound(open_audio(sound)) @ vision, model.encode_text(["a dog"])[0] @ vision]
    assert float(result.scores[0]) == pytest.approx(float(expected[0]), abs=1e-5)
    assert float(result.scores[2]) == pytest.approx(float(expected[1]), abs=1e-5)
    assert model.modalities == ("audio", "text") and model.understands_words
