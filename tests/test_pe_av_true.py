"""PE-AV at the true size of pe-av-small, with random weights."""

from __future__ import annotations

from collections.abc import Iterator

import pe_av_small as small
import pytest
import torch
import torch.nn.functional as F

import avgrad
from avgrad.media import open_audio
from avgrad.models.pe_av import PeAv
from avgrad.models.pe_av_files import build
from benchmarks import pe_av

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Iterator[PeAv]:
    yield pe_av.random_model("pe-av-small", ("vision", "audio"))


@pytest.mark.parametrize("name", pe_av.NAMES)
def test_published_sizes(name: str) -> None:
    """In parameters: PE-A-Frame (text and sound) has 450, 560 and 1,400 million."""
    model = build(pe_av.config(name))
    count = sum(weight.numel() for weight in model.parameters())
    own = count - sum(weight.numel() for weight in model.video_model.parameters())
    assert own / 1e6 == pytest.approx({"pe-av-small": 450, "pe-av-base": 560, "pe-av-large": 1400}[name], rel=0.05)


def test_published_file() -> None:
    """Its model.safetensors has 3,388,082,648 bytes, of which 117,416 are the header."""
    from transformers import PeAudioVideoModel

    with torch.device("meta"):
        whole = PeAudioVideoModel(pe_av.config("pe-av-small"))
    whole.tie_weights()
    weights = {id(weight): weight.numel() for weight in whole.state_dict(keep_vars=True).values()}
    assert 4 * sum(weights.values()) == 3_388_082_648 - 117_416


@pytest.mark.parametrize("num_frames", [1, 2])
def test_against_the_library(model: PeAv, num_frames: int) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(1, num_frames, 3, 336, 336, generator=generator)
    prompts = F.normalize(torch.randn(2, 1024, generator=generator), dim=-1)
    view, video = model.video_view(num_frames), model.model.video_model
    own = small.video_embedding(video, frames).expand(num_frames, -1)
    assert torch.allclose(view.encode(frames[0]), own, rtol=0, atol=1e-5)
    expected = small.legrad(video, frames, prompts)
    found = avgrad.attribute(view, frames[0], prompts, per_layer=True).flatten(-2)
    assert found.shape == (num_frames, 2, 24, 576)
    scale = expected.amax(-1, keepdim=True)
    assert float(((found - expected) / scale).abs().max()) < 1e-3
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_sound(model: PeAv) -> None:
    waveform = 0.1 * torch.randn(1, 3 * 48_000, generator=torch.Generator().manual_seed(1))
    found = model.encode_sound(open_audio((waveform, 48_000)))
    with torch.no_grad():
        own = model.model.audio_model.get_audio_embeds(waveform[None])[0]
    assert torch.allclose(found, F.normalize(own, dim=-1), rtol=0, atol=1e-5)
