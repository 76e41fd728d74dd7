"""The sound of a video, decoded and resampled in order, at the times of its frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from avgrad.errors import MediaError, out_of_memory
from avgrad.media.audio import MAX_AMPLITUDE
from avgrad.media.sound_container import MAX_CHANNELS

if TYPE_CHECKING:
    from avgrad.media.video import Video

# Time stamps are rounded and jitter; packets that are this close to each other belong together.
_JITTER_SECONDS = 0.05
# Codecs whose packets lean on earlier ones settle within this time.
_SETTLING_SECONDS = 0.5


class SoundReader:
    """Reads pieces of a sound track in the order of their times; a context manager.

    Pieces are silent where the track has no sound: before its beginning, in gaps, after its end, in packets that cannot
    be decoded.

    Attributes:
        note: why it ended before the end of the track; empty where it did not.

    Args:
        video: the video.
        sample_rate: of the pieces, in Hz.
        track: number of the sound track, 0 for the first.
        start: in seconds; nothing before is read.
        channels: 1 or 2 mixes the track to mono or stereo; None keeps its channels.

    Raises:
        MediaError: the video has no such track, or it has more than 32 channels.
    """

    def __init__(
        self, video: Video, sample_rate: int, track: int = 0, start: float = 0.0, channels: int | None = None
    ) -> None:
        self._video, self._rate = video, sample_rate
        self.note = ""
        if not 0 <= track < video.num_tracks:
            raise MediaError(
                f"{video.name} has {_tracks(video.num_tracks)}, and no track {track}; a video with a sound track is "
                "accepted."
                if video.num_tracks
                else f"{video.name} has no sound track; a video with sound is accepted, or give prompts."
            )
        self._stack = ExitStack()
        try:
            self._container = video.opened(self._stack)
            self._track = self._container.streams.audio[track]
            self._channels = self._track.codec_context.channels
            if not 1 <= self._channels <= MAX_CHANNELS:  # before decoding, which for thousands can end the interpreter
                raise MediaError(f"{video.name} has {self._channels} channels; 1 to {MAX_CHANNELS} are accepted.")
            self._mixed = None if channels is None else ("mono", "stereo")[channels - 1]
            self._channels = channels or self._channels
            early = start - _SETTLING_SECONDS
            if early > 0 and self._track.time_base:
                stamp = int((video.origin + early) / self._track.time_base)
                self._container.seek(stamp, stream=self._track, backward=True)
        except BaseException:
            self._stack.close()
            raise
        self._begin = self._end = max(0, int(start * sample_rate))  # of what is kept, in samples
        self._pieces = self._resampled()
        self._kept: list[np.ndarray] = []

    def read(self, begin: int, end: int) -> torch.Tensor:
        """The samples from `begin` to `end`, float32 `[channels, end - begin]`; `begin` never falls.

        Raises:
            MediaError: there are samples that are not finite or far out of range.
        """
        known = self.read_rest(begin, end)
        return torch.nn.functional.pad(known, (0, end - begin - known.shape[1]))

    def read_rest(self, begin: int, end: int) -> torch.Tensor:
        """The same without silence after the end of the track: fewer samples there, or none."""
        while self._end < end:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._kept.append(piece)
            self._end += piece.shape[1]
        joined = np.concatenate(self._kept, axis=1) if self._kept else np.zeros((self._channels, 0), np.float32)
        if begin > self._begin:
            joined = joined[:, begin - self._begin :]
            self._begin = begin
            self._end = max(self._end, begin)
        self._kept = [joined]
        return torch.from_numpy(joined[:, : end - begin].copy())

    # ------------------------------------------------------------------ decoding

    def _resampled(self) -> Iterator[np.ndarray]:
        """Pieces `[channels, samples]` that follow each other without gaps, from the start on."""
        position, expected = self._end, None  # of the next sample to give, and of the next one that is decoded
        for time, samples in self._decoded():
            place: int | None = expected if time is None else round(time * self._rate)
            if place is None:
                place = position
            elif expected is not None and abs(place - expected) <= _JITTER_SECONDS * self._rate:
                place = expected
            expected = place + samples.shape[1]
            while position < place:  # a gap
                length = min(place - position, self._rate)
                yield np.zeros((len(samples), length), np.float32)
                position += length
            samples = samples[:, position - place :]
            if samples.shape[1]:
                yield self._checked(samples)
                position += samples.shape[1]

    def _decoded(self) -> Iterator[tuple[float | None, np.ndarray]]:
        """Times in seconds of the video, and resampled packets `[channels, samples]`."""
        import av

        resampler: Any = None
        setup: tuple[Any, ...] = ()
        time: float | None
        frames: list[Any]
        try:
            for packet in self._container.demux(self._track):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:  # left out, as players do
                    continue
                for frame in frames:
                    found = frame.sample_rate, frame.layout.name, frame.format.name
                    if len(frame.layout.channels) > MAX_CHANNELS:
                        raise MediaError(
                            f"{self._video.name} has {len(frame.layout.channels)} channels; 1 to {MAX_CHANNELS} are "
                            "accepted."
                        )
                    if found != setup:
                        if resampler is None:
                            layout = self._mixed or frame.layout
                            self._channels = len(frame.layout.channels) if self._mixed is None else self._channels
                        setup, resampler = found, av.AudioResampler("fltp", layout, self._rate)
                    time = None
                    if frame.pts is not None and frame.time_base:
                        time = float(frame.pts * frame.time_base) - self._video.origin
                    for number, piece in enumerate(resampler.resample(frame)):
                        yield (time if number == 0 else None), piece.to_ndarray()
            if resampler is not None:
                for piece in resampler.resample(None):
                    yield None, piece.to_ndarray()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, MediaError) or out_of_memory(error):
                raise
            self.note = f"the sound of {self._video.name} is damaged; it was used up to there"

    def _checked(self, samples: np.ndarray) -> np.ndarray:
        peak = float(np.abs(samples).max())  # NaN where one is not finite
        if not peak <= MAX_AMPLITUDE:
            raise MediaError(f"{self._video.name} has samples of {peak:.4g}; values in [-1, 1] are accepted.")
        return samples

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    def __enter__(self) -> SoundReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _tracks(count: int) -> str:
    return "1 sound track" if count == 1 else f"{count} sound tracks"
