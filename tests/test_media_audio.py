"""Opening sounds: formats, exact positions, refusals and memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from sound_files import FFMPEG, LIBSNDFILE, decode_whole, encode, tones, without_length, write

from avgrad.errors import MediaError
from avgrad.media import open_audio

ROOT = Path(__file__).parents[1]


def lag(decoded: np.ndarray, original: np.ndarray) -> int | None:
    """By how many samples the middle of `decoded` is late, from -20 to 20; None if it is another sound."""
    middle = original[:, 100_000:110_000]
    late = range(-20, 21)
    errors = [np.square(decoded[:, 100_000 + shift : 110_000 + shift] - middle).mean() for shift in late]
    return late[int(np.argmin(errors))] if min(errors) < 0.03**2 else None


def offsets(length: int, size: int) -> list[int]:
    generator = np.random.default_rng(1)
    return [0, 1, 647, 1024, length - size, *generator.integers(0, length - size, 8).tolist()]


@pytest.mark.parametrize("name", LIBSNDFILE)
def test_pieces_equal_whole_file(name: str, tmp_path: Path) -> None:
    rate = 48000 if name == "opus" else 44100
    waveform = tones(6, rate)
    content = write(waveform, rate, name)
    if name in ("vorbis", "opus", "mp3"):
        whole = decode_whole(content)
    else:
        whole = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0].T
    path = tmp_path / "sound.bin"  # what a file is follows from its content
    path.write_bytes(content)
    for source in (content, path, str(path)):
        with open_audio(source) as audio:
            assert (audio.sample_rate, audio.num_channels, audio.num_frames) == (rate, 2, waveform.shape[1])
            assert audio.duration == pytest.approx(6)
            for start in offsets(audio.num_frames, 5000):
                piece = audio.read(start, start + 5000)
                assert piece.dtype == torch.float32 and piece.shape == (2, 5000)
                np.testing.assert_allclose(piece.numpy(), whole[:, start : start + 5000], atol=1e-6)
            decoded = audio.read(0, audio.num_frames).numpy()
    assert lag(decoded, waveform) == 0
    step = LIBSNDFILE[name][2]
    if step is not None:
        np.testing.assert_allclose(decoded, waveform, rtol=0, atol=1.01 * step)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", FFMPEG)
def test_pieces_equal_whole_track(name: str, channels: int) -> None:
    rate = 48000 if name == "webm" else 44100
    waveform = tones(6, rate, channels)
    content = encode(waveform, rate, name)
    whole = decode_whole(content)
    with open_audio(content) as audio:
        assert (audio.sample_rate, audio.num_channels) == (rate, channels)
        assert whole.shape[1] - 1024 <= audio.num_frames <= whole.shape[1]
        if name in ("m4a", "webm", "mov"):
            assert audio.num_frames == waveform.shape[1]
        for start in offsets(audio.num_frames, 5000):
            piece = audio.read(start, start + 5000).numpy()
            np.testing.assert_allclose(piece, whole[:, start : start + 5000], atol=1e-6)
        # The first two declare no delay; whether the third does depends on the version of FFmpeg.
        delays = {"adts": [1024], "mp4_fragmented": [1024], "mka": [0, 1024]}.get(name, [0])
        late = [lag(audio.read(shift, audio.num_frames).numpy(), waveform) for shift in delays]
    assert 0 in late


def test_mp3_without_length() -> None:
    waveform = tones(20, 44100)
    waveform[:, 44100 * 5 :] *= 0.01  # a variable bit rate makes any estimate wrong
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 44100, 2, format="MP3", bitrate_mode="VARIABLE") as file:
        file.write(waveform.T)
    content = without_length(stream.getvalue())
    whole = decode_whole(content)
    with open_audio(content) as audio:
        assert audio.num_frames == whole.shape[1]
        for start in offsets(audio.num_frames, 5000):
            piece = audio.read(start, start + 5000).numpy()
            np.testing.assert_allclose(piece, whole[:, start : start + 5000], atol=1e-6)


def test_mp3_behind_a_large_tag() -> None:
    content = write(tones(3, 44100), 44100, "mp3")
    tag = b"ID3\x04\0\0" + bytes([0, 1, 0, 0]) + bytes(128 * 128)
    with open_audio(tag + content) as audio:
        assert audio.num_frames == 3 * 44100


def test_flac_of_unknown_length() -> None:
    content = bytearray(write(tones(3, 44100), 44100, "flac"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    with open_audio(bytes(content)) as audio:
        assert audio.num_frames == 3 * 44100
        assert torch.isfinite(audio.read(60_000, 70_000)).all()


@pytest.mark.parametrize(
    ("riff", "data"), [(0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (0xFFFFFFFF, 0), (0x7FFFFFFF, 0x7FFFFFDB)]
)
def test_streamed_wav_header(riff: int, data: int) -> None:
    waveform = tones(3, 16000, 1)
    content = bytearray(write(waveform, 16000, "wav"))
    content[4:8] = struct.pack("<I", riff)
    content[40:44] = struct.pack("<I", data)
    with open_audio(bytes(content)) as audio:
        assert audio.num_frames == waveform.shape[1]
        np.testing.assert_allclose(audio.read(20000, 30000).numpy(), waveform[:, 20000:30000], atol=3.1e-5)


def test_sound_track_of_a_video() -> None:
    waveform = tones(3, 44100)
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as output:
        video = output.add_stream("mpeg4", rate=10, width=64, height=48)
        track = output.add_stream("aac", rate=44100, layout="stereo")
        for index in range(30):
            image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), format="rgb24")
            output.mux(video.encode(image))
        frame = av.AudioFrame.from_ndarray(waveform, format="fltp", layout="stereo")
        frame.rate, frame.pts = 44100, 0
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=44100, frame_size=1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(track.encode(piece))
        output.mux(video.encode(None))
        output.mux(track.encode(None))
    with open_audio(stream.getvalue()) as audio:
        assert audio.num_frames == waveform.shape[1]
        assert np.abs(audio.read(50000, 60000).numpy() - waveform[:, 50000:60000]).max() < 0.1


def test_browser_recording() -> None:
    """WebM written as it comes: no length, no index, packets stamped by a clock in whole milliseconds."""
    waveform = tones(20, 48000, 1)
    generator = np.random.default_rng(3)

    class Pipe(io.RawIOBase):
        content = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.content += data
            return len(data)

    pipe = Pipe()
    with (
        av.open(io.BytesIO(encode(waveform, 48000, "webm"))) as source,
        av.open(pipe, "w", format="webm", options={"live": "1"}) as output,
    ):
        track = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = track
                late = int(generator.integers(0, 8)) if packet.pts > 0 else 0
                packet.pts = packet.dts = packet.pts + late
                output.mux(packet)
    with av.open(io.BytesIO(bytes(pipe.content))) as container:
        assert container.duration is None
    with open_audio(bytes(pipe.content)) as audio:
        assert audio.duration == pytest.approx(20, abs=0.04)
        for start in (0, 200_000, 500_000, 900_000):
            piece = audio.read(start, start + 48_000).numpy()
            middle = piece[:, 1000:-1000]
            errors = [
                np.square(middle - waveform[:, start + 1000 + late : start + 47_000 + late]).mean()
                for late in range(-600, 601)
            ]
            # One unbroken stretch of the sound, not more than the clock's 8 ms beside its place.
            assert min(errors) < 0.03**2 and abs(int(np.argmin(errors)) - 600) <= 8 * 48 + 24


def test_video_without_sound_track() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as output:
        video = output.add_stream("mpeg4", rate=10, width=64, height=48)
        output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        output.mux(video.encode(None))
    with pytest.raises(MediaError, match="no sound track"):
        open_audio(stream.getvalue())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int16])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_arrays(dtype: type, as_tensor: bool) -> None:
    waveform = tones(1, 16000)
    array = (waveform * 32768).astype(dtype) if dtype is np.int16 else waveform.astype(dtype)
    for given in (array, array[0]):
        with open_audio((torch.from_numpy(given) if as_tensor else given, 16000)) as audio:
            assert audio.num_channels == (2 if given.ndim == 2 else 1)
            piece = audio.read(100, 900).numpy()
            np.testing.assert_allclose(piece, waveform[: audio.num_channels, 100:900], atol=3e-4)


def test_array_is_not_changed_through_a_piece() -> None:
    waveform = tones(1, 16000)
    with open_audio((waveform, 16000)) as audio:
        audio.read(0, 16000).zero_()
    assert np.abs(waveform).max() > 0.1


def image_bytes() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 10)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-file.wav", "does not exist"),
        ("", "empty path"),
        ("a\0b.wav", "cannot be read"),
        (os.path.dirname(__file__), "directory"),
        (os.devnull, "not a regular file"),
        (b"", "empty"),
        (b"RIFF", "no known format"),
        (b"hello, world" * 100, "no known format"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "no known format"),
        (image_bytes(), "a JPEG image"),
        (None, "NoneType"),
        (7, "int"),
        ((np.zeros(16000, np.float32),), "tuple of 1"),
        (([0.0, 0.1], 16000), "list"),
        ((np.zeros(16000, np.int32), 16000), "int32"),
        ((np.zeros(16000, complex), 16000), "complex"),
        ((np.zeros((2, 2, 16000), np.float32), 16000), "shape"),
        ((np.zeros((16000, 2), np.float32), 16000), "channels, samples"),
        ((np.zeros((0, 16000), np.float32), 16000), "0 channels"),
        ((np.zeros((1, 0), np.float32), 16000), "25 ms"),
        ((np.zeros((1, 399), np.float32), 16000), "25 ms"),
        ((np.zeros(16000, np.float32), "16000"), "str"),
        ((np.zeros(16000, np.float32), float("nan")), "nan Hz"),
        ((np.zeros(16000, np.float32), 16000.5), "whole number"),
        ((np.zeros(16000, np.float32), 0), "0 Hz"),
        ((np.zeros(16000, np.float32), 3999), "3999 Hz"),
        ((np.zeros(16000, np.float32), 384001), "384001 Hz"),
        ((np.broadcast_to(np.float32(0), 4000 * 3600 * 25), 4000), "25 hours"),
    ],
)
def test_refused(source: object, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        open_audio(source)  # type: ignore[arg-type]
    assert "accepted" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param((1, 1, 1000), id="rate too low"),
        pytest.param((1, 1, 2_000_000), id="rate too high"),
        pytest.param((1, 200, 16000), id="too many channels"),
    ],
)
def test_refused_header(header: tuple[int, int, int]) -> None:
    code, channels, rate = header
    form = struct.pack("<HHIIHH", code, channels, rate, rate * channels * 2, channels * 2, 16)
    data = bytes(channels * 2 * 1000)
    content = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    with pytest.raises(MediaError, match="accepted"):
        open_audio(content + b"data" + struct.pack("<I", len(data)) + data)


def test_truncated_wav() -> None:
    content = write(tones(3, 16000), 16000, "wav")
    with pytest.raises(MediaError, match="cut short"):
        open_audio(content[: len(content) // 2])
    with pytest.raises(MediaError):
        open_audio(content[:44])
    with open_audio(content[: int(0.95 * len(content))]) as audio:  # a little missing is no harm
        assert audio.duration == pytest.approx(0.95 * 3, abs=0.01)


@pytest.mark.parametrize("name", ["flac", "m4a", "mov"])
def test_truncated(name: str) -> None:
    content = (write if name in LIBSNDFILE else encode)(tones(6, 44100), 44100, name)
    with pytest.raises(MediaError), open_audio(content[: len(content) // 2]) as audio:
        audio.read(audio.num_frames - 5000, audio.num_frames)


def test_not_finite() -> None:
    waveform = tones(1, 16000)
    waveform[1, 8000] = np.nan
    for source in (write(waveform, 16000, "wavfloat"), (waveform, 16000)):
        with open_audio(source) as audio:
            audio.read(0, 8000)
            with pytest.raises(MediaError, match="not finite"):
                audio.read(0, 8001)


def test_values_on_another_scale() -> None:
    with open_audio((32768 * tones(1, 16000), 16000)) as audio, pytest.raises(MediaError, match="samples of"):
        audio.read(0, 8000)


@pytest.mark.parametrize(
    ("name", "level"),
    [("wav", 0.25), ("flac", -1.0)] + [(name, 0.0) for name in ("wav", "flac", "vorbis", "opus", "mp3", "m4a", "webm")],
)
def test_silent(name: str, level: float) -> None:
    waveform = np.full((1, 48000 * 3), level, np.float32)
    content = (write if name in LIBSNDFILE else encode)(waveform, 48000, name)
    with open_audio(content, name="nothing") as audio, pytest.raises(MediaError, match="nothing is silent"):
        audio.read_clips([(0, 48000), (48000, 96000)])


def test_partly_silent() -> None:
    waveform = np.zeros((2, 48000), np.float32)
    waveform[1, 30000:40000] = 0.1 * np.sin(np.arange(10000))
    with open_audio((waveform, 16000)) as audio:
        first, again, second = audio.read_clips([(0, 16000), (0, 16000), (32000, 48000)])
        assert first is again and not first.any() and second.any()
        with pytest.raises(MediaError, match="silent"):
            audio.read_clips([(0, 16000)])


def test_bounds_and_close() -> None:
    audio = open_audio((tones(1, 16000), 16000))
    for start, stop in [(-1, 5), (5, 5), (6, 5), (0, 16001)]:
        with pytest.raises(MediaError, match="no frames"):
            audio.read(start, stop)
    audio.close()
    audio.close()
    with pytest.raises(MediaError, match="closed"):
        audio.read(0, 5)


MEMORY_PROGRAM = """
import resource, sys
from avgrad.encoders.audio import log_mel_clips
from avgrad.media import open_audio
def peak(path):
    with open_audio(path) as audio:
        assert log_mel_clips(audio).shape == (3, 1, 128, 204)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, audio.duration
before, _ = peak(sys.argv[1])
after, duration = peak(sys.argv[2])
print(after - before, duration)
"""


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mp3", "adts")]


@pytest.mark.parametrize("name", ["flac", *SLOW])
def test_hour_in_little_memory(name: str, tmp_path: Path) -> None:
    rate, minute = 8000, tones(60, 8000, 1)
    for path, minutes in ((long := tmp_path / "long", 60), (short := tmp_path / "short", 1)):
        if name == "flac":
            with soundfile.SoundFile(path, "w", rate, 1, format="FLAC", subtype="PCM_16") as file:
                for _ in range(minutes):
                    file.write(minute.T)
        else:  # streams of packets, which may follow one another
            content = encode(minute, rate, name) if name == "adts" else write(minute, rate, name)
            path.write_bytes((content if name == "adts" else without_length(content)) * minutes)
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(short), str(long)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    growth, duration = map(float, result.stdout.split())
    assert duration == pytest.approx(3600, abs=15)  # each minute ends with a filled-up packet
    assert growth < 30  # MiB; decoded, the hour takes 110
