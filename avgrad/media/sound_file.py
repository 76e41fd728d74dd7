"""Sounds that libsndfile decodes: WAV, AIFF, AU, CAF and FLAC."""

from __future__ import annotations

import io
import struct

import numpy as np

from avgrad.errors import MediaError
from avgrad.media.source import Source

# From here on a length in a header means "until the end of the file": recorders that cannot go back to
# write it leave 2**32 - 1, 2**31 - 1 less a header, or zero.
_STREAMED = 0x7FFF0000
_MAX_CHUNKS = 1000
# A file that holds less than this share of what it promises is refused, since clips spread over the whole.
MIN_SHARE = 0.9


class UnknownLengthError(Exception):
    """libsndfile can open the file, but not tell how long it is."""


class SoundFileReader:
    """Reads pieces of one file through libsndfile, seeking to each."""

    def __init__(self, source: Source) -> None:
        """Open the file.

        Raises:
            MediaError: a WAV file that is cut short.
            UnknownLengthError: the length is not known from the headers.
            soundfile.SoundFileError: libsndfile does not take it.
        """
        import soundfile

        if source.head[:4] == b"RIFF":
            _check_wav_length(source)
        content = io.BytesIO(source.content) if isinstance(source.content, bytes) else source.content
        self._file = soundfile.SoundFile(content)
        self.sample_rate: int = self._file.samplerate
        self.num_channels: int = self._file.channels
        self.num_frames: int = self._file.frames
        if not 0 < self.num_frames < 2**62 or not self._file.seekable():
            self._file.close()
            raise UnknownLengthError

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode frames `start` to `stop`: float32 [channels, frames], fewer where the file ends early."""
        self._file.seek(start)
        samples: np.ndarray = self._file.read(stop - start, dtype="float32", always_2d=True)
        return samples.T

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_wav_length(source: Source) -> None:
    """Compare the length that the data chunk promises with what follows (libsndfile takes what is there)."""
    with source.open() as stream:
        position = 12
        for _ in range(_MAX_CHUNKS):
            stream.seek(position)
            header = stream.read(8)
            if len(header) < 8:
                return
            kind, length = struct.unpack("<4sI", header)
            if kind == b"data":
                held = source.size - position - 8
                if length < _STREAMED and held < MIN_SHARE * length:
                    raise MediaError(
                        f"{source.name} is cut short: its header promises {length} bytes of sound "
                        f"and {held} follow; a complete file is accepted."
                    )
                if length in (0, 0xFFFFFFFF) and held > 0:
                    raise UnknownLengthError
                return
            position += 8 + length + length % 2
