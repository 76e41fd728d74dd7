"""Synthetic videos: the truth is exact, and the same state draws the same video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from avgrad.errors import InputError
from avgrad.media import open_video
from avgrad.media.video import FrameReader, upright
from avgrad.media.video_sound import SoundReader
from avgrad.scenes import write_dataset
from avgrad.scenes.images import scene_rng
from avgrad.scenes.samples import sample_videos
from avgrad.scenes.sounds import SAMPLE_RATE
from avgrad.scenes.video import RATE, SyntheticVideo, draw_video


@pytest.fixture(scope="module")
def videos() -> list[SyntheticVideo]:
    return [draw_video(np.random.default_rng(seed), 64, 8.0) for seed in range(4)]


def test_truth(videos: list[SyntheticVideo]) -> None:
    for video in videos:
        count = len(video.classes)
        assert video.frames.shape == (8 * RATE, 64, 64, 3) and video.labels.shape == video.frames.shape[:3]
        assert 2 <= count <= 4 and len(set(video.classes)) == count and video.offscreen not in video.classes
        assert set(np.unique(video.labels)) == set(range(count + 1))
        for number in range(count):  # every object is visible in every frame, and moves
            masks = video.labels == number + 1
            assert masks.any((1, 2)).all()
        moved = [np.abs(np.diff((video.labels == number + 1).astype(int), axis=0)).any() for number in range(count)]
        assert any(moved)
        assert video.segments[0].start == 0 and video.segments[-1].end == 8.0
        for first, second in zip(video.segments, video.segments[1:], strict=False):
            assert first.end == second.start and first[2:] != second[2:]
        sources = sorted({number for segment in video.segments for number in segment.objects})
        assert 1 <= len(sources) <= 2
        assert all(any(segment.objects == (source,) for segment in video.segments) for source in sources)
        for segment in video.segments:
            inside = (video.times >= segment.start) & (video.times < segment.end)
            expected = [number in segment.objects for number in range(count)] + [segment.offscreen]
            assert (video.sounding[inside] == expected).all()


def test_stems_sound_when_the_truth_says_so(videos: list[SyntheticVideo]) -> None:
    for video in videos:
        assert video.stems.shape == (len(video.classes) + 2, 8 * SAMPLE_RATE)
        for segment in video.segments:
            part = video.stems[:, round(segment.start * SAMPLE_RATE) : round(segment.end * SAMPLE_RATE)]
            sounds = np.abs(part).max(1) > 0
            expected = [number in segment.objects for number in range(len(video.classes))]
            assert sounds.tolist() == [*expected, segment.offscreen, True]  # and noise
        loud = [np.sqrt((stem[stem != 0] ** 2).mean()) for stem in video.stems if stem.any()]
        assert 20 * np.log10(min(loud[:-1]) / loud[-1]) > 8  # the noise is 15 to 28 dB below, sources differ by up to 8
        assert np.abs(video.waveform).max() <= 0.99


def test_the_same_state_draws_the_same_video(videos: list[SyntheticVideo]) -> None:
    again = draw_video(np.random.default_rng(1), 64, 8.0)
    assert np.array_equal(again.frames, videos[1].frames) and np.array_equal(again.stems, videos[1].stems)
    assert again.segments == videos[1].segments


def test_wrong_arguments() -> None:
    for arguments in ({"size": 16}, {"seconds": 1.0}, {"num_objects": 1}, {"classes": [1]}):
        with pytest.raises(InputError, match="a video has size 32 or more"):
            draw_video(np.random.default_rng(0), **arguments)  # type: ignore[arg-type]


def test_layout(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", "video", 1, 5, size=64, progress=False)
    (entry,) = json.loads((out / "videos.json").read_text())
    drawn = draw_video(scene_rng("video", 5, 0), 64)
    video = open_video(out / entry["video"])
    assert (video.width, video.height, video.duration) == (64, 64, 12.0)
    with FrameReader(video) as reader:
        pairs = [(time, np.asarray(upright(frame, video))) for time, frame in reader]
    assert [time for time, _ in pairs] == pytest.approx(drawn.times.tolist())
    for (_, image), frame in zip(pairs, drawn.frames, strict=True):
        assert np.abs(image.astype(int) - frame).mean() < 12
    with SoundReader(video, SAMPLE_RATE) as sound:
        heard = sound.read(0, 12 * SAMPLE_RATE).numpy()[0]
    assert np.corrcoef(heard, drawn.waveform)[0, 1] > 0.95
    with np.load(out / entry["truth"]) as truth:
        assert np.array_equal(truth["labels"], drawn.labels) and np.array_equal(truth["sounding"], drawn.sounding)
    assert len(list((out / "stems").iterdir())) == int(drawn.stems.any(1).sum())


def test_sample_videos() -> None:
    samples = sample_videos()
    assert len(samples) == 2
    assert sum(path.stat().st_size for sample in samples for path in (sample.video, sample.truth)) < 1_000_000
    for sample in samples:
        video = open_video(sample.video)
        assert (video.width, video.height, video.duration, video.num_tracks) == (320, 320, 12.0, 1)
        with np.load(sample.truth) as truth:
            assert truth["labels"].shape == (96, 320, 320)
            assert truth["sounding"].shape == (96, len(sample.classes) + 1)
