"""avgrad.localize_video: the same results as frame by frame, silence, smoothing, threads that end."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import avgrad
from avgrad.errors import InputError, MediaError, MediaWarning, PromptError, UnsupportedModelError
from avgrad.media import open_video
from avgrad.media.video import FrameReader, frames_at, upright
from avgrad.media.video_sound import SoundReader
from avgrad.scenes.samples import sample_videos
from avgrad.video.ahead import Ahead
from avgrad.video.moment import OWN_SOUND
from tests.video_files import encode_video, moving_square, tone


@pytest.fixture(scope="module")
def mini() -> Any:
    return avgrad.load("mini")


@pytest.fixture(scope="module")
def small(mini: Any) -> avgrad.Localizer:
    """A Localizer that sees little, and so is quick."""
    return avgrad.Localizer(mini, size=48, keep=False)


@pytest.fixture(scope="module")
def sounding() -> bytes:
    """Three seconds: a tone, then silence from 0.4 s on."""
    sound = tone(3)
    sound[:, 19_200:] = 0
    return encode_video(moving_square(30), "mov", sounds=[sound])


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("avgrad")]


def test_each_moment_is_what_its_frame_and_its_window_give(mini: Any) -> None:
    video = open_video(sample_videos()[0].video)
    moments = list(avgrad.localize_video(video, model=mini, fps=1, text="a train", own_sound=True, batch_size=5))
    assert [moment.time for moment in moments] == list(range(12))
    with FrameReader(video) as frames:
        images = [upright(frame, video) for _, frame in frames_at(frames, 1)]
    localizer = avgrad.Localizer(mini)
    for moment in moments[::3]:
        begin = min(max(moment.time - 1, 0), 10)
        with SoundReader(video, 16_000, start=begin) as sound:
            window = sound.read(round(16_000 * begin), round(16_000 * begin) + 32_000)
        localizer.set_image(images[round(moment.time)])
        expected = localizer.localize(audio=(window, 16_000), text="a train")
        assert [prompt.label for prompt in moment.prompts] == [OWN_SOUND, "a train"]
        assert torch.allclose(moment.scores, expected.scores, atol=2e-3)
        assert torch.allclose(moment.heatmaps, expected.heatmaps, atol=0.05)
        assert np.array_equal(np.asarray(moment.image), np.asarray(images[round(moment.time)]))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_change_nothing(small: avgrad.Localizer, sounding: bytes, batch_size: int) -> None:
    moments = list(avgrad.localize_video(sounding, model=small, text="a bell", fps=3, batch_size=batch_size))
    reference = list(avgrad.localize_video(sounding, model=small, text="a bell", fps=3))
    assert len(moments) == 9
    for one, other in zip(moments, reference, strict=True):
        assert one.time == other.time
        assert torch.allclose(one.maps, other.maps, rtol=1e-3, atol=1e-9)


def test_silence_is_marked_and_not_explained(small: avgrad.Localizer, sounding: bytes) -> None:
    with avgrad.localize_video(sounding, model=small, fps=4) as moments:
        assert moments.own_sound and moments.count == 12
        found = list(moments)
    # the windows of two seconds are [0, 2] up to 1 s, and hold the tone as long as they begin before 0.4 s
    assert [moment.silent for moment in found] == [moment.time >= 1.5 for moment in found]
    for moment in found:
        assert moment.explains(0) != moment.silent
        assert torch.isnan(moment.scores[0]) == moment.silent
        assert bool(moment.maps.any()) != moment.silent
        entry = moment.to_dict()["prompts"][0]
        assert (entry["score"] is None) == (entry["peak"] is None) == moment.silent
    both = list(avgrad.localize_video(sounding, model=small, fps=4, text="a bell", own_sound=True))
    alone = list(avgrad.localize_video(sounding, model=small, fps=4, text="a bell"))
    for moment, text in zip(both, alone, strict=True):
        assert torch.isnan(moment.scores).tolist() == [moment.time >= 1.5, False]
        assert torch.allclose(moment.maps[1], text.maps[0], rtol=1e-3, atol=1e-9)
        assert not text.silent
    loud = list(avgrad.localize_video(sounding, model=small, fps=4, silence=-200.0))
    assert [moment.silent for moment in loud] == [moment.time >= 1.5 for moment in loud]  # digital silence
    assert all(moment.silent for moment in avgrad.localize_video(sounding, model=small, fps=4, silence=-1.0))


def test_smoothing_averages_maps_and_scores(small: avgrad.Localizer, sounding: bytes) -> None:
    arguments = {"model": small, "text": "a bell", "own_sound": True, "fps": 4}
    plain = list(avgrad.localize_video(sounding, **arguments))
    smooth = list(avgrad.localize_video(sounding, smoothing=1.0, **arguments))
    assert [moment.options["smoothing"] for moment in (plain[0], smooth[0])] == [0.0, 1.0]
    for index, moment in enumerate(smooth):
        near = plain[max(0, index - 2) : index + 3]
        assert torch.allclose(moment.maps[1], torch.stack([other.maps[1] for other in near]).mean(0))
        heard = [other.scores[0] for other in near if not other.silent]
        if moment.silent:
            assert torch.isnan(moment.scores[0])
        else:
            assert torch.allclose(moment.scores[0], torch.stack(heard).mean())


def test_moments_are_saved_and_loaded(small: avgrad.Localizer, sounding: bytes, tmp_path: Path) -> None:
    moment = next(avgrad.localize_video(sounding, model=small))
    moment.save(tmp_path)
    again = avgrad.Moment.load(tmp_path)
    assert isinstance(again, avgrad.Moment) and (again.time, again.silent) == (0.0, False)
    assert torch.equal(again.maps, moment.maps)
    assert repr(moment).startswith("Moment(0.000 s, Localization(the given bytes 64x48, mini")


def test_first_goes_on_in_the_middle(small: avgrad.Localizer, sounding: bytes) -> None:
    everything = list(avgrad.localize_video(sounding, model=small, fps=4))
    later = list(avgrad.localize_video(sounding, model=small, fps=4, first=3))
    assert [moment.time for moment in later] == [moment.time for moment in everything[3:]]
    assert all(
        torch.allclose(one.maps, other.maps, rtol=1e-2, atol=1e-7)
        for one, other in zip(later, everything[3:], strict=True)
    )


def test_videos_without_sound(small: avgrad.Localizer) -> None:
    gif = encode_video(moving_square(20), "gif")
    with pytest.raises(MediaError, match="has no sound track"):
        avgrad.localize_video(gif, model=small)
    assert len(list(avgrad.localize_video(gif, model=small, text="a bell"))) == 8


def test_damaged_videos_end_with_a_warning(small: avgrad.Localizer) -> None:
    data = encode_video(moving_square(30), "mkv", sounds=[tone(3)])
    with pytest.warns(MediaWarning, match="is cut short|is damaged"):
        moments = avgrad.localize_video(data[: len(data) // 2], model=small)
        found = list(moments)
    assert 2 <= len(found) < 12 and moments.note


def test_wrong_arguments(small: avgrad.Localizer, sounding: bytes) -> None:
    for arguments, kind, words in (
        ({"fps": 0}, InputError, "fps=0 is not a number from 0.001"),
        ({"fps": "4"}, InputError, "fps='4'"),
        ({"smoothing": -1}, InputError, "smoothing=-1"),
        ({"track": 1}, MediaError, "1 sound track, and no track 1"),
        ({"own_sound": False}, InputError, "own_sound=False needs a prompt"),
        ({"text": ""}, PromptError, "text"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"first": -1}, InputError, "first=-1"),
    ):
        with pytest.raises(kind, match=words):
            avgrad.localize_video(sounding, **{"model": small, **arguments})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="method goes with a model"):
        avgrad.localize_video(sounding, model=avgrad.Localizer("mini"), method="gradcam")
    vision = avgrad.load("mini", towers=["vision"])
    with pytest.raises(UnsupportedModelError, match="not sounds"):
        avgrad.localize_video(sounding, model=vision)
    assert threads() == []


# ------------------------------------------------------------------ threads


def test_threads_end_when_the_caller_stops(small: avgrad.Localizer, sounding: bytes) -> None:
    for leave in ("close", "with", "forget"):
        moments = avgrad.localize_video(sounding, model=small, fps=10, batch_size=2)
        next(moments)
        assert threads()
        if leave == "close":
            moments.close()
        elif leave == "with":
            with moments:
                pass
        del moments
        assert threads() == []


def test_threads_end_by_errors_and_interruptions(
    small: avgrad.Localizer, sounding: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (KeyboardInterrupt(), RuntimeError("broken")):
        moments = avgrad.localize_video(sounding, model=small, fps=10, batch_size=2)

        def fail(*_: Any, error: BaseException = error, **__: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("avgrad.localizer.Localizer.results", fail)
            with pytest.raises(type(error)):
                next(moments)
        assert threads() == []
    monkeypatch.setattr("avgrad.video.localize.upright", lambda *_: (_ for _ in ()).throw(RuntimeError("frame")))
    with pytest.raises(RuntimeError, match="frame"):
        list(avgrad.localize_video(sounding, model=small))
    assert threads() == []


def test_ahead_reads_no_further_than_it_may_and_passes_errors() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            if number == 5:
                raise ValueError("five")
            yield number

    ahead = Ahead(numbers(), 2, "avgrad-test")
    found: list[int] = []
    with pytest.raises(ValueError, match="five"):
        for number in ahead:
            found.append(number)
            assert len(read) <= len(found) + 4  # two in the queue, one on its way, one that was given
    assert found == [0, 1, 2, 3, 4]
    ahead.close()
    endless = Ahead(itertools.count(), 3, "avgrad-test")
    assert next(iter(endless)) == 0
    endless.close()
    assert threads() == []


def test_no_warning_for_whole_videos(small: avgrad.Localizer, sounding: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(avgrad.localize_video(sounding, model=small, fps=2))) == 6
