"""Real sound files for the tests, made by libsndfile and FFmpeg."""

from __future__ import annotations

import io

import av
import numpy as np
import soundfile

# Name: (soundfile format, subtype, step of the samples that it stores)
LIBSNDFILE = {
    "wav": ("WAV", "PCM_16", 2**-15),
    "wav24": ("WAV", "PCM_24", 2**-23),
    "wavfloat": ("WAV", "FLOAT", 0.0),
    "flac": ("FLAC", "PCM_16", 2**-15),
    "vorbis": ("OGG", "VORBIS", None),
    "opus": ("OGG", "OPUS", None),
    "mp3": ("MP3", "MPEG_LAYER_III", None),
}
# Name: (container, codec). Noise substitution is random, so that no two decodings with it are equal.
FFMPEG = {
    "m4a": ("ipod", "aac"),
    "mp4_fragmented": ("mp4", "aac"),
    "adts": ("adts", "aac"),
    "webm": ("webm", "libopus"),
    "mka": ("matroska", "aac"),
    "mov": ("mov", "pcm_s16le"),
}


def tones(seconds: float, sample_rate: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Chirping tones with a little noise, each channel its own: float32 [channels, samples], peak 0.5."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    rows = []
    for _ in range(channels):
        low, sweep = generator.uniform(200, 500), generator.uniform(20, 60)
        rows.append(0.4 * np.sin(2 * np.pi * (low + sweep * time) * time) * (0.6 + 0.4 * np.sin(3 * time)))
    return (np.stack(rows) + 0.01 * generator.standard_normal((channels, time.size))).astype(np.float32)


def write(waveform: np.ndarray, sample_rate: int, name: str) -> bytes:
    """Encode with libsndfile."""
    container, subtype, _ = LIBSNDFILE[name]
    stream = io.BytesIO()
    soundfile.write(stream, waveform.T, sample_rate, format=container, subtype=subtype)
    return stream.getvalue()


def encode(waveform: np.ndarray, sample_rate: int, name: str) -> bytes:
    """Encode with FFmpeg."""
    container, codec = FFMPEG[name]
    options = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"} if "frag" in name else {}
    layout = "stereo" if len(waveform) == 2 else "mono"
    stream = io.BytesIO()
    with av.open(stream, "w", format=container, options=options) as output:
        track = output.add_stream(codec, rate=sample_rate, layout=layout)
        track.codec_context.options = {"aac_pns": "0"} if codec == "aac" else {}
        track.codec_context.open()
        frame = av.AudioFrame.from_ndarray(waveform, format="fltp", layout=layout)
        frame.rate, frame.pts = sample_rate, 0
        context = track.codec_context
        resampler = av.AudioResampler(
            format=context.format, layout=layout, rate=sample_rate, frame_size=context.frame_size or 1024
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(track.encode(piece))
        output.mux(track.encode(None))
    return stream.getvalue()


def decode_whole(content: bytes) -> np.ndarray:
    """All packets in one go, in the order of the file: float32 [channels, samples]."""
    with av.open(io.BytesIO(content)) as container:
        pieces = []
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray()
            if not frame.format.is_planar:
                samples = samples.reshape(-1, len(frame.layout.channels)).T
            pieces.append(samples / 32768 if samples.dtype == np.int16 else samples)
    return np.concatenate(pieces, axis=1).astype(np.float32)


def without_length(content: bytes) -> bytes:
    """An MP3 without its first frame, the one that tells the length."""
    tag = max(content.find(b"Xing"), content.find(b"Info"))
    return content[content.find(content[:2], tag + 100) :]
