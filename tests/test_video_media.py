"""Reading videos: formats, rotation, times, sound; damaged ones end early or are refused."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avgrad.errors import MediaError
from avgrad.media import open_audio, open_video
from avgrad.media.video import MAX_HOLD, FrameReader, frames_at, is_video, ticks, upright
from avgrad.media.video_sound import SoundReader
from tests.sound_files import encode, tones
from tests.video_files import KINDS, encode_video, moving_square, rotated, tone


def shown(data: bytes, fps: float, first: int = 0) -> list[tuple[int, np.ndarray]]:
    video = open_video(data)
    with FrameReader(video, first / fps) as reader:
        return [(number, np.asarray(upright(frame, video))) for number, frame in frames_at(reader, fps, first)]


def left_edge(image: np.ndarray) -> int:
    """The first column of the white square."""
    return int((image[image.shape[0] // 2, :, 0] > 180).argmax())


@pytest.mark.parametrize("kind", KINDS)
def test_formats(kind: str) -> None:
    frames = moving_square(30)
    data = encode_video(frames, kind, sounds=[tone(3)])
    video = open_video(data)
    assert (video.width, video.height) == (64, 48)
    assert video.duration == pytest.approx(3, abs=0.1)
    assert video.num_tracks == (0 if kind == "gif" else 1)
    found = shown(data, 10)
    assert len(found) == pytest.approx(30, abs=1)  # the time stamps of AVI count from another frame
    for number, image in found[:25]:
        assert abs(left_edge(image) - left_edge(frames[number])) <= (3 if kind == "avi" else 1)
        assert np.abs(image.astype(int) - frames[number]).mean() < (20 if kind == "gif" else 12)  # of 256 colors


@pytest.mark.parametrize("turns", range(4))
def test_rotation(turns: int) -> None:
    frames = moving_square(3)
    data = rotated(encode_video(frames), turns)
    video = open_video(data)
    assert (video.width, video.height) == ((48, 64) if turns % 2 else (64, 48))
    _, image = shown(data, 10)[0]
    upright_frame = np.rot90(frames[0], -turns)  # clockwise
    assert image.shape == upright_frame.shape
    assert np.abs(image.astype(int) - upright_frame).mean() < 12


def test_odd_size() -> None:
    data = encode_video(moving_square(4, 66, 50), "mkv")
    assert shown(data, 10)[0][1].shape == (50, 66, 3)
    odd = encode_video(moving_square(4, 65, 51), "gif")
    assert shown(odd, 10)[0][1].shape == (51, 65, 3)


def test_variable_frame_rate() -> None:
    frames = moving_square(4)
    data = encode_video(frames, "mkv", times=[0.0, 0.1, 1.0, 1.05])
    edges = [left_edge(frame) for frame in frames]
    found = [(number, left_edge(image)) for number, image in shown(data, 4)]
    assert [number for number, _ in found] == [0, 1, 2, 3, 4]
    for (_, edge), expected in zip(found, [edges[0], edges[1], edges[1], edges[1], edges[2]], strict=True):
        assert abs(edge - expected) <= 1


def test_start_in_the_middle() -> None:
    data = encode_video(moving_square(30))
    everything = shown(data, 5)
    assert [number for number, _ in everything] == list(range(15))
    later = shown(data, 5, first=7)
    assert [number for number, _ in later] == list(range(7, 15))
    for (_, first), (_, second) in zip(everything[7:], later, strict=True):
        assert np.array_equal(first, second)


def test_ticks() -> None:
    assert [ticks(seconds, 4) for seconds in (0.01, 1.0, 1.01, 2.5)] == [1, 4, 5, 10]


def test_time_stamps_that_jump() -> None:
    data = encode_video(moving_square(4), "mkv", times=[0.0, 0.1, 0.2, MAX_HOLD + 10])
    with FrameReader(open_video(data)) as reader:
        assert [round(time, 3) for time, _ in reader] == [0.0, 0.1, 0.2]
    assert "damaged time stamps after 0.2 s" in reader.note


# ------------------------------------------------------------------ sound


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gif"])
def test_sound_is_resampled_in_place(kind: str) -> None:
    video = open_video(encode_video(moving_square(30), kind, sounds=[tone(3)]))
    with SoundReader(video, 16_000) as reader:
        whole = reader.read(0, 48_000)
    expected = torch.from_numpy(tone(3, 16_000))
    # codecs change phases a little, and their packets begin anywhere; the middle is compared as players hear it
    spectrum = torch.fft.rfft(whole[:, 8_000:40_000]).abs()
    assert int(spectrum.argmax()) == 440 * 2
    assert float(whole[:, 8_000:40_000].square().mean()) == pytest.approx(float(expected.square().mean()), rel=0.1)
    with SoundReader(video, 16_000) as reader:
        pieces = [reader.read(start, start + 16_000) for start in range(0, 32_001, 4_000)]
    for number, piece in enumerate(pieces):
        assert torch.equal(piece, whole[:, 4_000 * number : 4_000 * number + 16_000])
    with SoundReader(video, 16_000, start=1.5) as reader:
        later = reader.read(24_000, 40_000)
    # time stamps of Matroska are milliseconds, so what is read after a seek may lie that much beside
    middle = later[:, 1_000:-1_000]
    shifts = [
        float((whole[:, 25_000 + shift : 25_000 + shift + middle.shape[1]] - middle).abs().max())
        for shift in range(-16, 17)
    ]
    assert min(shifts) < (0.05 if kind == "avi" else 0.02)


def test_sound_agrees_with_that_of_the_file_alone() -> None:
    data = encode_video(moving_square(30), "mov", sounds=[tone(3)])
    with open_audio(data) as audio, SoundReader(open_video(data), 48_000) as reader:
        assert float((audio.read(0, 144_000) - reader.read(0, 144_000)).abs().max()) < 1e-6


def test_sound_shorter_later_and_longer() -> None:
    short = open_video(encode_video(moving_square(30), "mkv", sounds=[tone(1)]))
    with SoundReader(short, 16_000) as reader:
        samples = reader.read(0, 48_000)
    assert float(samples[:, 17_500:].abs().max()) == 0
    assert float(samples[:, 4_000:12_000].abs().max()) > 0.25
    late = open_video(encode_video(moving_square(30), "mkv", sounds=[tone(2)], sound_start=1.0))
    with SoundReader(late, 16_000) as reader:
        samples = reader.read(0, 48_000)
    assert float(samples[:, :14_000].abs().max()) == 0
    assert float(samples[:, 18_000:40_000].abs().max()) > 0.25
    long = open_video(encode_video(moving_square(10), "mp4", sounds=[tone(3)]))
    assert long.duration == pytest.approx(1, abs=0.1)


def test_tracks() -> None:
    video = open_video(encode_video(moving_square(20), "mkv", sounds=[tone(2), tone(2, frequency=880)]))
    assert video.num_tracks == 2
    for track, frequency in enumerate((440, 880)):
        with SoundReader(video, 16_000, track) as reader:
            assert int(torch.fft.rfft(reader.read(0, 32_000)[:, 8_000:24_000]).abs().argmax()) == frequency
    with pytest.raises(MediaError, match="2 sound tracks, and no track 2"):
        SoundReader(video, 16_000, 2)
    with pytest.raises(MediaError, match="has no sound track"):
        SoundReader(open_video(encode_video(moving_square(3))), 16_000)


# ------------------------------------------------------------------ what is refused, and what is damaged


def test_what_is_no_video(tmp_path: Path) -> None:
    sound = encode(tones(1, 48_000), 48_000, "m4a")
    still = encode_video(moving_square(1), "gif")
    for source, words in (
        (sound, "has no images, only sound"),
        (b"hello", "in no known format"),
        (b"", "is empty"),
        (tmp_path, "is a directory"),
        (tmp_path / "none.mp4", "does not exist"),
    ):
        with pytest.raises(MediaError, match=words):
            open_video(source)
    assert is_video(encode_video(moving_square(2))) and is_video(encode_video(moving_square(2), "gif"))
    assert not any(map(is_video, (sound, still, b"hello", b"")))


def damaged(data: bytes, seed: int) -> bytes:
    """Cut short, with some bytes changed, or with a part overwritten."""
    generator, changed = random.Random(seed), bytearray(data)
    if seed % 3 == 0:
        return data[: generator.randrange(40, len(data))]
    if seed % 3 == 1:
        for _ in range(generator.randrange(1, 30)):
            changed[generator.randrange(12, len(data))] = generator.randrange(256)
        return bytes(changed)
    start = generator.randrange(12, len(data))
    part = bytes(generator.randrange(256) for _ in range(generator.randrange(10, 2_000)))
    return bytes(changed[:start]) + part + bytes(changed[start + len(part) :])


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv", "avi", "gif"])
def test_damaged_videos_end_early_or_are_refused(kind: str) -> None:
    data = encode_video(moving_square(30), kind, sounds=[tone(3)])
    read = noted = 0
    for seed in range(40):  # 200 over the kinds
        try:
            video = open_video(damaged(data, seed))
            with FrameReader(video) as reader:
                images = [upright(frame, video) for _, frame in frames_at(reader, 4)]
            assert {image.size for image in images} <= {(video.width, video.height)}
            if video.num_tracks:
                with SoundReader(video, 16_000) as sound:
                    assert torch.isfinite(sound.read(0, 48_000)).all()
            read, noted = read + 1, noted + bool(reader.note)
        except MediaError:
            pass
    assert read >= 8 and noted >= 1


def test_cut_short() -> None:
    data = encode_video(moving_square(30), "mkv", sounds=[tone(3)])
    with FrameReader(open_video(data[: len(data) // 2])) as reader:
        times = [time for time, _ in reader]
    assert times[0] == 0 and 0.5 < times[-1] < 2.5
    assert "is cut short: it ends at" in reader.note or "is damaged after" in reader.note


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_video_is_closed_where_pyav_logs(seed: int, tmp_path: Path) -> None:
    """In a process of its own: torchvision lets PyAV log, and a decoder's thread that logs could wait forever."""
    content = bytearray(encode_video(moving_square(60, 320, 240)))
    rng = random.Random(seed)
    for _ in range(40):
        content[rng.randrange(2000, len(content) - 2000)] = rng.randrange(256)
    (tmp_path / "damaged.mp4").write_bytes(content)
    program = """
import av, sys
av.logging.set_level(av.logging.ERROR)
from avgrad.errors import MediaError
from avgrad.media.video import FrameReader, open_video
for _ in range(20):
    try:
        with FrameReader(open_video(sys.argv[1])) as frames:
            next(iter(frames), None)
    except MediaError:
        pass
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "damaged.mp4")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
