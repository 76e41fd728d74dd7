"""Writing videos: MP4 with H.264 (VP9 where FFmpeg has no H.264 encoder) in yuv420p, which browsers play."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from avgrad.media.ffmpeg import keep_quiet

if TYPE_CHECKING:
    import av

TICKS = 90_000  # time stamps per second
COPIED = ("aac", "mp3", "mp3float")  # codecs of sound that every browser plays in MP4: their packets are copied
_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 11_025, 8_000)  # of AAC
_ENCODERS = (
    ("libx264", {"preset": "veryfast"}),
    ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "6", "row-mt": "1", "b": "0"}),
)


class VideoFile:
    """Writes one MP4 file; a context manager.

    The file has its name when it is complete: when the block ends, also by an error, if at least one image was written.
    So what was written before an interruption can be played.

    Args:
        path: of the file; one that exists is replaced.
        width, height: of the images, even.
        rate: images per second, on average.
        quality: the encoder's constant rate factor; smaller is better and larger.
        reproducible: the same images give the same bytes: one thread, and no version in the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        rate: Fraction,
        quality: int = 23,
        reproducible: bool = False,
    ) -> None:
        import av

        keep_quiet()
        self.path = Path(path)
        self._part = self.path.with_name(f".{os.getpid()}.{os.urandom(4).hex()}.part")
        name, options = next(entry for entry in _ENCODERS if entry[0] in av.codecs_available)
        flags = {"fflags": "+bitexact"} if reproducible else {}
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart", **flags})
        track: Any = self._container.add_stream(name, rate=Fraction(rate).limit_denominator(1000))
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        track.options = {**options, "crf": str(quality)}
        track.codec_context.time_base = Fraction(1, TICKS)
        if reproducible:
            track.codec_context.thread_count = 1
            track.codec_context.flags |= av.codec.context.Flags.bitexact
        self._track = track
        self._sound: Any = None
        self._samples, self._closed = 0, False
        self._last = -1  # time stamp of the last image

    # ------------------------------------------------------------------ sound, which is added before the first image

    def copy_sound(self, track: Any) -> None:
        """Adds a sound track whose packets are copied: see `write_packet`."""
        self._sound = self._container.add_stream_from_template(track)

    def encode_sound(self, sample_rate: int, channels: int, bit_rate: int = 128_000) -> None:
        """Adds a sound track of AAC: see `write_sound`."""
        layout = {1: "mono", 2: "stereo"}[channels]
        self._sound = self._container.add_stream("aac", rate=sample_rate, layout=layout, bit_rate=bit_rate)
        self._samples = 0

    def write_packet(self, packet: av.Packet, time: float) -> None:
        """Copies a packet of sound; the packets are given in the order of the file."""
        shift = round(time / packet.time_base) - (packet.pts if packet.pts is not None else 0)
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift
        packet.stream = self._sound
        self._container.mux(packet)

    def write_sound(self, samples: np.ndarray) -> None:
        """Writes further samples, float32 `[channels, samples]`."""
        import av

        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples), "fltp", "mono" if len(samples) == 1 else "stereo"
        )
        frame.sample_rate, frame.pts = self._sound.rate, self._samples
        frame.time_base = Fraction(1, self._sound.rate)
        self._samples += samples.shape[1]
        self._container.mux(self._sound.encode(frame))

    # ------------------------------------------------------------------ images

    def write_image(self, frame: av.VideoFrame, time: float) -> None:
        """Writes an image at a time in seconds; times rise. One that follows by less than a time stamp is left out."""
        stamp = round(time * TICKS)
        if stamp <= self._last:
            return
        frame.pts, frame.time_base, self._last = stamp, Fraction(1, TICKS), stamp
        self._container.mux(self._track.encode(frame))

    def close(self) -> None:
        """Completes the file and gives it its name; closing twice does no harm."""
        if self._closed:
            return
        self._closed = True
        container = self._container
        try:
            if self._last >= 0:
                if self._samples:
                    container.mux(self._sound.encode(None))
                container.mux(self._track.encode(None))
            container.close()
            if self._last >= 0:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def aac_rate(sample_rate: int) -> int:
    """The sample rate at which a sound is encoded as AAC: its own, or the next one that AAC has."""
    return next((rate for rate in reversed(_RATES) if rate >= sample_rate), _RATES[0])
