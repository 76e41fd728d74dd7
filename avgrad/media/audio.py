"""Sounds: files, bytes and arrays become an `Audio`, of which only the asked-for pieces are decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

import numpy as np
import torch

from avgrad.errors import MediaError
from avgrad.media.sound_container import MAX_CHANNELS, ContainerReader
from avgrad.media.sound_file import SoundFileReader, UnknownLengthError
from avgrad.media.source import Source, open_source

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 384_000
MAX_HOURS = 24
MIN_SECONDS = 0.025  # one window of the spectral analysis
# A sound whose samples stay this close together (-120 dB) is silence, also after lossy compression.
SILENT_RANGE = 1e-6
# Decoders overshoot and mixers exceed full scale a little; beyond this the values are on another scale.
MAX_AMPLITUDE = 100.0
_ACCEPTED = (
    "a sound file (WAV, FLAC, Ogg, MP3, M4A, AAC, WebM), a video with a sound track, its bytes, "
    "or (waveform [channels, samples], sample_rate)"
)


class _Reader(Protocol):
    sample_rate: int
    num_channels: int
    num_frames: int

    def read(self, start: int, stop: int) -> np.ndarray: ...

    def close(self) -> None: ...


class _ArrayReader:
    def __init__(self, waveform: np.ndarray, sample_rate: int) -> None:
        self._waveform = waveform
        self.sample_rate = sample_rate
        self.num_channels, self.num_frames = waveform.shape

    def read(self, start: int, stop: int) -> np.ndarray:
        piece = self._waveform[:, start:stop]
        return piece.astype(np.float32) / np.float32(32768 if piece.dtype == np.int16 else 1)

    def close(self) -> None: ...


class Audio:
    """An opened sound of which only the asked-for pieces are decoded; a context manager.

    Attributes:
        name: how messages call the sound.
        sample_rate: frames per second.
        num_channels: number of channels.
        num_frames: length in frames (one frame is one sample of every channel).
        duration: length in seconds.
    """

    def __init__(self, reader: _Reader, name: str) -> None:
        """Check what the reader says of itself; `open_audio` is the way to make one.

        Raises:
            MediaError: the sample rate, the number of channels or the duration is outside what is accepted.
        """
        self._reader: _Reader | None = reader
        self.name = name
        self.sample_rate = reader.sample_rate
        self.num_channels = reader.num_channels
        self.num_frames = reader.num_frames
        if not MIN_SAMPLE_RATE <= self.sample_rate <= MAX_SAMPLE_RATE:
            raise MediaError(
                f"{name} has a sample rate of {self.sample_rate} Hz; "
                f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz is accepted."
            )
        if not 1 <= self.num_channels <= MAX_CHANNELS:
            raise MediaError(
                f"{name} has {self.num_channels} channels; 1 to {MAX_CHANNELS} are accepted "
                "(an array has the shape [channels, samples])."
            )
        if self.num_frames < int(MIN_SECONDS * self.sample_rate):
            raise MediaError(
                f"{name} lasts {1000 * self.duration:.1f} ms; at least {1000 * MIN_SECONDS:.0f} ms is accepted."
            )
        if self.duration > MAX_HOURS * 3600:
            raise MediaError(f"{name} lasts {self.duration / 3600:.0f} hours; at most {MAX_HOURS} are accepted.")

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate

    def frames_of(self, begin: float, end: float) -> tuple[int, int]:
        """Find the frames of a part of the sound.

        Args:
            begin: in seconds.
            end: in seconds, at least 25 ms later.

        Returns:
            First frame, and the frame after the last one.

        Raises:
            MediaError: this is no part of the sound, or a shorter one.
        """
        if math.isfinite(begin) and math.isfinite(end):
            start, stop = round(begin * self.sample_rate), round(end * self.sample_rate)
            if 0 <= start <= stop - int(MIN_SECONDS * self.sample_rate) and stop <= self.num_frames:
                return start, stop
        raise MediaError(
            f"{self.name} has no span of {begin} to {end} s; "
            f"at least {1000 * MIN_SECONDS:.0f} ms within 0 to {self.duration:.3f} s is accepted."
        )

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Decode one piece.

        Args:
            start: first frame.
            stop: frame after the last one; 0 <= start < stop <= num_frames.

        Returns:
            float32 [channels, stop - start], nominally in [-1, 1] (decoders of lossy formats overshoot a
            little, and floating-point files are not bound to it; 100 is the limit).

        Raises:
            MediaError: the piece cannot be decoded, is cut short, or holds values that are not finite or far
                out of range; or the bounds are not those of a piece of this sound, or it was closed.
        """
        if self._reader is None:
            raise MediaError(f"{self.name} was closed; an open sound is accepted.")
        if not 0 <= start < stop <= self.num_frames:
            raise MediaError(f"{self.name} has no frames {start} to {stop}; 0 to {self.num_frames} are accepted.")
        try:
            samples = self._reader.read(start, stop)
        except MediaError:
            raise
        except Exception as error:  # decoders let errors of many types through on damaged files
            raise MediaError(
                f"{self.name} is damaged and cannot be decoded at {start / self.sample_rate:.1f} s; "
                "a complete file is accepted."
            ) from error
        if samples.shape[1] < stop - start:
            raise MediaError(
                f"{self.name} is cut short: it ends before the {self.duration:.1f} s "
                "that its header promises; a complete file is accepted."
            )
        if not np.isfinite(samples).all():
            raise MediaError(f"{self.name} has samples that are not finite; finite values in [-1, 1] are accepted.")
        peak = np.abs(samples).max()
        if peak > MAX_AMPLITUDE:
            raise MediaError(f"{self.name} has samples of {peak:.4g}; values in [-1, 1] are accepted.")
        return torch.from_numpy(np.ascontiguousarray(samples))

    def read_clips(self, ranges: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Decode several pieces (each distinct one once) and check that they are not silent.

        Args:
            ranges: first frame and frame after the last one of each piece.

        Returns:
            One float32 tensor [channels, stop - start] for each range.

        Raises:
            MediaError: as `read`; or all the pieces are silent.
        """
        distinct = {span: self.read(*span) for span in dict.fromkeys(ranges)}
        spread = max(float((piece.amax(1) - piece.amin(1)).max()) for piece in distinct.values())
        if spread <= SILENT_RANGE:
            raise MediaError(f"{self.name} is silent in every part that was read; an audible sound is accepted.")
        return [distinct[span] for span in ranges]

    def close(self) -> None:
        """Close the file behind the sound; closing twice does no harm."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> Audio:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_audio(
    source: str | os.PathLike[str] | bytes | tuple[np.ndarray | torch.Tensor, int], *, name: str | None = None
) -> Audio:
    """Open a sound without decoding it.

    Args:
        source: a path or the bytes of a sound file (WAV, AIFF, AU, CAF, FLAC, Ogg Vorbis or Opus, MP3, M4A,
            AAC, WebM) or of a video, whose first sound track is used; or (waveform, sample_rate), the
            waveform a floating-point array in [-1, 1] or an int16 array, [channels, samples] or [samples].
        name: how messages call it; by default the name of the file.

    Returns:
        The opened sound, which the caller closes.

    Raises:
        MediaError: the source is none of these, is damaged or cut short, has a sample rate outside 4 to
            384 kHz, more than 32 channels, less than 25 ms or more than 24 hours.
    """
    if isinstance(source, tuple):
        name = name or "the given waveform"
        return Audio(_open_array(source, name), name)
    file = open_source(source, name, _ACCEPTED)
    if file.signature is None or file.signature.kind != "sound":
        description = file.signature.description if file.signature else "in no known format"
        raise MediaError(f"{file.name} is {description}; {_ACCEPTED} is accepted.")
    try:
        reader = _open_file(file)
    except MediaError:
        raise
    except Exception as error:  # soundfile and PyAV raise errors of many types on damaged files
        raise MediaError(
            f"{file.name} looks like {file.signature.description} but is damaged or in an unsupported encoding; "
            f"{_ACCEPTED} is accepted."
        ) from error
    try:
        return Audio(reader, file.name)
    except MediaError:
        reader.close()
        raise


def _open_file(file: Source) -> _Reader:
    import soundfile

    assert file.signature is not None and file.signature.demuxer is not None
    if file.signature.libsndfile:
        try:
            return SoundFileReader(file)
        except (soundfile.SoundFileError, UnknownLengthError):
            pass  # FFmpeg knows more codecs, and finds the length of what was streamed
    return ContainerReader(file, file.signature.demuxer)


def _open_array(source: tuple[object, ...], name: str) -> _Reader:
    if len(source) != 2:
        raise MediaError(f"{name} is a tuple of {len(source)} parts; (waveform, sample_rate) is accepted.")
    waveform, sample_rate = source
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    if not isinstance(waveform, np.ndarray) or not (waveform.dtype.kind == "f" or waveform.dtype == np.int16):
        kind = waveform.dtype if isinstance(waveform, np.ndarray) else type(waveform).__name__
        raise MediaError(f"{name} is of type {kind}; a floating-point or int16 array or tensor is accepted.")
    if waveform.ndim not in (1, 2):
        shape = list(waveform.shape)
        raise MediaError(f"{name} has the shape {shape}; [channels, samples] or [samples] is accepted.")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float, np.integer, np.floating)):
        kind = type(sample_rate).__name__
        raise MediaError(f"{name} has a sample rate of type {kind}; a number is accepted.")
    if not math.isfinite(sample_rate) or sample_rate != int(sample_rate):
        raise MediaError(f"{name} has a sample rate of {sample_rate} Hz; a whole number is accepted.")
    return _ArrayReader(np.atleast_2d(waveform), int(sample_rate))
