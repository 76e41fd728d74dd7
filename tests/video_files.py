"""Small real videos for the tests, made by FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

# Name: (container, codec of images, codec of sound, pixel format)
KINDS: dict[str, tuple[str, str, str | None, str]] = {
    "mp4": ("mp4", "libx264", "aac", "yuv420p"),
    "mov": ("mov", "libx264", "pcm_s16le", "yuv420p"),
    "webm": ("webm", "libvpx-vp9", "libopus", "yuv420p"),
    "mkv": ("matroska", "mpeg4", "aac", "yuv420p"),
    "avi": ("avi", "mpeg4", "mp3", "yuv420p"),
    "gif": ("gif", "gif", None, "rgb8"),
    "10 bit": ("mp4", "libx264", "aac", "yuv420p10le"),
}
RATE = 10  # frames per second, unless times are given


def moving_square(count: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Frames with a white square that moves to the right on a gray ramp: uint8 `[count, height, width, 3]`."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += np.linspace(30, 110, width, dtype=np.uint8)[None, None, :, None]
    side = height // 3
    for number in range(count):
        left = round(number / max(count - 1, 1) * (width - side))
        frames[number, side : 2 * side, left : left + side] = 255
    return frames


def tone(seconds: float, rate: int = 48_000, frequency: float = 440.0) -> np.ndarray:
    """A sine of amplitude 0.3: float32 `[1, samples]`."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)[None]


def encode_video(
    frames: np.ndarray,
    kind: str = "mp4",
    *,
    sounds: Sequence[np.ndarray] = (),
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    sound_start: float = 0.0,
) -> bytes:
    """A video file.

    Args:
        frames: uint8 `[T, H, W, 3]`.
        kind: of `KINDS`.
        sounds: tracks at 48 kHz, float32 `[1, samples]`.
        times: of the frames in seconds; None for `RATE` frames per second.
        options: of the container.
        sound_start: when the sounds begin, in seconds.
    """
    container, codec, sound_codec, pixel_format = KINDS[kind]
    stream = io.BytesIO()
    with av.open(stream, "w", format=container, options=options or {}) as file:
        track: Any = file.add_stream(codec, rate=RATE)
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = pixel_format
        track.options = {"preset": "ultrafast", "g": "10"} if codec == "libx264" else {"g": "10", "cpu-used": "8"}
        tracks: list[Any] = [file.add_stream(sound_codec, rate=48_000, layout="mono") for _ in sounds if sound_codec]
        if container != "gif":
            track.codec_context.time_base = Fraction(1, 1000)
        base = Fraction(1, 1000) if container != "gif" else Fraction(1, RATE)
        stamps = [number / RATE for number in range(len(frames))] if times is None else times
        done = [0] * len(tracks)
        for number, (image, time) in enumerate(zip(frames, stamps, strict=True)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = round(time / base), base
            file.mux(track.encode(frame))
            last = number == len(frames) - 1
            for index, sound in enumerate(sounds[: len(tracks)]):
                end = sound.shape[1] if last else min(round(time * 48_000), sound.shape[1])
                if end > done[index]:
                    piece = np.ascontiguousarray(sound[:, done[index] : end])
                    own = av.AudioFrame.from_ndarray(piece, "flt", "mono")
                    own.sample_rate, own.pts = 48_000, done[index] + round(sound_start * 48_000)
                    own.time_base = Fraction(1, 48_000)
                    resampler = av.AudioResampler(tracks[index].format.name, "mono", 48_000)
                    for part in resampler.resample(own):
                        part.pts = own.pts
                        file.mux(tracks[index].encode(part))
                    done[index] = end
        for one in (track, *tracks):
            file.mux(one.encode(None))
    return stream.getvalue()


def rotated(mp4: bytes, quarter_turns: int) -> bytes:
    """An MP4 whose images are to be shown rotated clockwise by so many quarter turns."""
    place = mp4.index(b"tkhd", mp4.index(b"trak")) + 4 + 4 + 20 + 8 + 8  # version 0: the matrix follows
    one = 0x10000
    a, b = ((one, 0), (0, one), (-one, 0), (0, -one))[quarter_turns % 4]
    matrix = (a, b, 0, -b, a, 0, 0, 0, 0x40000000)
    packed = b"".join((number & 0xFFFFFFFF).to_bytes(4, "big") for number in matrix)
    return mp4[:place] + packed + mp4[place + 36 :]
