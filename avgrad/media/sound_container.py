"""Sounds that FFmpeg decodes (through PyAV): MP3, Ogg, M4A, AAC, WebM from browsers, tracks of videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from avgrad.errors import MediaError
from avgrad.media.ffmpeg import keep_quiet
from avgrad.media.sound_file import MIN_SHARE
from avgrad.media.source import Source

if TYPE_CHECKING:
    import av

MAX_CHANNELS = 32
# Codecs whose packets lean on earlier ones (overlapping windows, bit reservoirs, long-term prediction) settle
# within this many seconds.
_SETTLING_SECONDS = 0.5
# A damaged piece is played with gaps, as players do, as long as more than this share of it could be decoded.
_MIN_DECODED_SHARE = 0.5


class ContainerReader:
    """Reads pieces of one sound track: seeks to a packet before the piece and decodes from there.

    Frame 0 is the first decoded sample, after the encoder delay that the container declares. Positions come
    from the packets' time stamps; where their unit is coarser than a sample (a millisecond in WebM) they are
    rounded to whole packets, so that pieces meet exactly.
    """

    def __init__(self, source: Source, demuxer: str) -> None:
        """Open the file, decode its beginning and its end, and pass over its packets to find its length.

        Raises:
            MediaError: it has no sound track, holds far less than it promises, or nothing can be decoded.
            Exception: whatever PyAV raises for a damaged file.
        """
        self._source = source
        self._name = source.name
        self._demuxer = demuxer
        self._stack = ExitStack()
        try:
            self._measure()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Open the file at its beginning, anew if it was open."""
        import av

        keep_quiet()
        self._stack.close()
        stream = self._stack.enter_context(self._source.open())
        self._container = self._stack.enter_context(
            av.open(stream, mode="r", format=self._demuxer, metadata_errors="ignore")
        )
        if not self._container.streams.audio:
            raise MediaError(f"{self._name} has no sound track; a sound, or a video with a sound track, is accepted.")
        self._track = self._container.streams.audio[0]
        num_channels = self._track.codec_context.channels
        if num_channels > MAX_CHANNELS:  # before decoding, which for thousands can end the interpreter
            raise MediaError(f"{self._name} has {num_channels} channels; 1 to {MAX_CHANNELS} are accepted.")

    def _measure(self) -> None:
        self._open()
        beginning = list(islice(self._frames(), 2))
        if not beginning:
            raise MediaError(f"{self._name} holds no sound that can be decoded; a complete file is accepted.")
        first = beginning[0]
        # The decoder knows better than the header: of high-efficiency AAC the header may tell half the rate.
        self.sample_rate: int = first.sample_rate
        self.num_channels: int = len(first.layout.channels)
        self._tick = float((first.time_base or 1) * self.sample_rate)  # samples per unit of the time stamps
        self._origin: int = first.pts or 0
        self._grid = (first.samples, beginning[-1].samples)
        self.num_frames: int = self._find_length()

    def _find_length(self) -> int:
        """Pass over all packets undecoded, then decode the last ones: headers may be missing or wrong."""
        self._open()
        last = 0
        for packet in self._container.demux(self._track):
            if packet.pts is not None and packet.size:
                last = max(last, packet.pts)
        start = max(round((last - self._origin) * self._tick) - self.sample_rate, 0)
        length = max((position + samples.shape[1] for position, samples in self._pieces(start)), default=0)
        promised = self._promised_length()
        if promised is None:
            return length
        if length < MIN_SHARE * promised:
            raise MediaError(
                f"{self._name} is cut short: it promises {promised / self.sample_rate:.1f} seconds and holds "
                f"{length / self.sample_rate:.1f}; a complete file is accepted."
            )
        # The last packet is filled up with silence; the edit list of an MP4 says where the sound itself ends.
        # (The header of a fragmented MP4 knows of the first fragment only.)
        filled_up = self._is_mp4() and 0 <= length - promised < 2 * self._grid[1]
        return promised if filled_up else length

    def _is_mp4(self) -> bool:
        return "mp4" in self._container.format.name

    def _promised_length(self) -> int | None:
        if self._is_mp4() and self._track.duration and self._track.time_base:
            return round(self._track.duration * self._track.time_base * self.sample_rate)
        if "matroska" in self._container.format.name and self._container.duration and not self._has_video():
            return round(self._container.duration * self.sample_rate / 1_000_000)
        return None

    def _has_video(self) -> bool:
        return len(self._container.streams) > 1

    def _seek(self, start: int) -> bool:
        """Go to a packet before frame `start`, so early that the decoder has settled by then.

        Returns:
            False if that is the beginning of the file.
        """
        settled = start - int(_SETTLING_SECONDS * self.sample_rate)
        if settled <= 0:
            # Only a fresh decoder leaves out the encoder's delay; not every demuxer can seek to before it.
            self._open()
            return False
        stamp = self._origin + int(settled / self._tick)
        self._container.seek(stamp, stream=self._track, backward=True)
        return True

    def _frames(self) -> Iterator[av.AudioFrame]:
        """Decode from the current place on; damaged packets are left out."""
        import av

        for packet in self._container.demux(self._track):
            try:
                frames: list[Any] = packet.decode()
            except av.error.InvalidDataError:
                continue
            yield from frames

    def _position(self, stamp: int) -> int:
        """Frame at which a decoded packet with this time stamp begins."""
        position = (stamp - self._origin) * self._tick
        first, later = self._grid
        if self._tick > 1 and later > 0:
            on_grid = first + round((position - first) / later) * later if position >= first / 2 else 0
            if abs(on_grid - position) <= self._tick:
                return on_grid
        return round(position)

    def _pieces(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """Position and samples [channels, frames] of each decoded packet, beginning before `start`."""
        frames = self._frames()
        if self._seek(start):
            # A decoder's first packet may come short of the encoder's delay, and so out of step.
            next(frames, None)
        expected: int | None = None
        for frame in frames:
            if frame.sample_rate != self.sample_rate or len(frame.layout.channels) != self.num_channels:
                raise MediaError(
                    f"{self._name} changes its sample rate or channels midway; a sound that keeps them is accepted."
                )
            position = self._position(frame.pts) if frame.pts is not None else expected
            if position is None:
                raise MediaError(f"{self._name} has no time stamps; a complete file is accepted.")
            # Recorders stamp packets by the clock; off by less than a packet, they still belong together.
            if expected is not None and abs(position - expected) < frame.samples and self._tick > 1:
                position = expected
            expected = position + frame.samples
            yield position, _to_float(frame)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode frames `start` to `stop`: float32 [channels, frames]; gaps are silent.

        Raises:
            MediaError: most of the piece cannot be decoded.
        """
        result = np.zeros((self.num_channels, stop - start), dtype=np.float32)
        decoded = 0
        for position, samples in self._pieces(start):
            if position >= stop:
                break
            begin, end = max(position, start), min(position + samples.shape[1], stop)
            if begin < end:
                result[:, begin - start : end - start] = samples[:, begin - position : end - position]
                decoded += end - begin
        if decoded < _MIN_DECODED_SHARE * (stop - start):
            raise MediaError(f"{self._name} is damaged: most of a piece cannot be decoded; a whole file is accepted.")
        return result

    def close(self) -> None:
        """Close the container and its file."""
        self._stack.close()


def _to_float(frame: av.AudioFrame) -> np.ndarray:
    """The samples of a decoded packet: float32 [channels, frames], nominally in [-1, 1]."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32)
