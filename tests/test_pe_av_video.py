"""Videos through PE-AV: frames one by one, and several through its temporal encoder together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pe_av_small as small
import pytest
import torch
from video_files import encode_video, moving_square, tone

import avgrad
from avgrad.errors import InputError, UnsupportedModelError
from avgrad.media import open_audio
from avgrad.models.pe_av import PeAv


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PeAv:
    return PeAv.from_folder(small.save(tmp_path_factory.mktemp("pe_av")))


@pytest.fixture(scope="module")
def video() -> bytes:
    """Seven frames of 0.1 s."""
    return encode_video(moving_square(7), sounds=[np.concatenate([tone(0.4), tone(0.3, frequency=900.0)], 1)])


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_frames_are_embedded_together(model: PeAv, video: bytes, batch_size: int) -> None:
    """Three and three frames, and the last one alone; in batches of whole groups."""
    options = {"fps": 10, "frames": 3, "batch_size": batch_size, "correction": None}
    moments = list(avgrad.localize_video(video, model=model, text=["a dog", "rain"], **options))
    assert len(moments) == 7 and moments[0].options["frames"] == 3
    pixels = torch.stack([model.preprocess.whole(moment.image) for moment in moments])
    prompts = model.encode_text(["a dog", "rain"])
    for start, stop in ((0, 3), (3, 6), (6, 7)):
        view, own = model.video_view(stop - start), pixels[start:stop]
        expected = avgrad.attribute(view, own, prompts, correction=None, per_layer=True)
        scores = prompts @ view.encode(own)[0].float()
        for moment, maps in zip(moments[start:stop], expected, strict=True):
            assert torch.allclose(moment.layer_maps, maps, rtol=0, atol=1e-6)
            assert torch.allclose(moment.scores, scores, rtol=0, atol=1e-5)


def test_own_sound_of_a_group_is_that_around_its_middle(model: PeAv, video: bytes) -> None:
    moments = list(avgrad.localize_video(video, model=model, fps=10, frames=4))
    assert len(moments) == 7 and not any(moment.silent for moment in moments)
    # the clip of two seconds is longer than the video: every group hears all of it
    sound = model.encode_audio([model.audio_preprocess.clip(open_audio(video).read(0, open_audio(video).num_frames))])
    pixels = torch.stack([model.preprocess.whole(moment.image) for moment in moments])
    for start, stop in ((0, 4), (4, 7)):
        score = float(sound[0] @ model.video_view(stop - start).encode(pixels[start:stop])[0].float())
        assert [float(moment.scores[0]) for moment in moments[start:stop]] == pytest.approx(
            [score] * (stop - start), abs=1e-2
        )
        assert len({float(moment.scores[0]) for moment in moments[start:stop]}) == 1


def test_one_frame_is_the_default(model: PeAv, video: bytes) -> None:
    moments = list(avgrad.localize_video(video, model=model, fps=10, text="a drum", batch_size=3))
    pixels = torch.stack([model.preprocess.whole(moment.image) for moment in moments])
    expected = avgrad.attribute(model, pixels, model.encode_text(["a drum"]), per_layer=True)
    assert torch.allclose(torch.stack([moment.layer_maps for moment in moments]), expected, rtol=0, atol=1e-6)


def test_wrong_arguments(model: PeAv, video: bytes, tmp_path: Path) -> None:
    for frames in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="frames="):
            avgrad.localize_video(video, model=model, text="rain", frames=frames)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="first=2 is not accepted; with frames=4"):
        avgrad.localize_video(video, model=model, text="rain", frames=4, first=2)
    with pytest.raises(
        UnsupportedModelError, match=r"frames=2 needs a model of videos such as pe-av-base; mini is none"
    ):
        avgrad.localize_video(video, model="mini", text="rain", frames=2)
