"""Pieces of sounds at a model's own sample rate; only these pieces are decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F

from avgrad.media import Audio

# The filter of torchaudio.functional.resample at its defaults reaches this far.
_ZERO_CROSSINGS = 6
_ROLLOFF = 0.99
_MAX_PHASES = 640


def resampled_length(audio: Audio, frames: tuple[int, int], sample_rate: int) -> int:
    """The length in samples of a part of a sound, resampled.

    Args:
        audio: an open sound of any sample rate.
        frames: the part's first frame and the frame after its last one.
        sample_rate: in Hz.
    """
    return math.ceil(Fraction((frames[1] - frames[0]) * sample_rate, audio.sample_rate))


def read_resampled(
    audio: Audio, frames: tuple[int, int], pieces: Sequence[tuple[int, int]], sample_rate: int
) -> list[torch.Tensor]:
    """Pieces of a part of a sound, resampled: as if the whole part were resampled and the pieces cut out of it.

    Args:
        audio: an open sound of any sample rate.
        frames: the part's first frame and the frame after its last one.
        pieces: first sample and the sample after the last one of each piece, at the new rate, counted from the part's
            beginning and at most `resampled_length`.
        sample_rate: the new rate, in Hz.

    Returns:
        One float32 tensor `[channels, samples]` for each piece.

    Raises:
        MediaError: the sound cannot be decoded there, is not finite there or is silent in all pieces.
    """
    begin, end = frames
    ratio = _ratio(audio.sample_rate, sample_rate)
    blocks = [_block(piece, audio.sample_rate, sample_rate) for piece in pieces]
    found = audio.read_clips([(begin + low, min(begin + high, end)) for low, high, _ in blocks])
    return [
        _resample(piece, ratio)[:, first - offset : stop - offset]
        for (first, stop), (_, _, offset), piece in zip(pieces, blocks, found, strict=True)
    ]


def _ratio(old: int, new: int) -> Fraction:
    """Input frames per output sample.

    torchaudio's filters grow with the product of the two reduced rates, to gigabytes for rates without a
    common divisor; for those the ratio is rounded, by less than two samples over 10 seconds at 48 kHz.
    """
    return Fraction(old, new).limit_denominator(_MAX_PHASES)


def _block(piece: tuple[int, int], old: int, new: int) -> tuple[int, int, int]:
    """What to resample to get a piece as from the whole sound.

    Args:
        piece: its first sample and the sample after its last one, at the new rate.
        old, new: sample rates.

    Returns:
        The first frame to read; the frame after the last one, which may lie beyond the sound; and the sample
        at the new rate that the first frame gives: a multiple of the number of phases of the filter.
    """
    ratio = _ratio(old, new)
    width = math.ceil(_ZERO_CROSSINGS * max(ratio, Fraction(1)) / _ROLLOFF)
    start, stop = piece
    phases = ratio.denominator
    offset = max(start // phases - math.ceil(width / ratio.numerator), 0) * phases
    first = round(Fraction(offset * old, new))
    return first, math.ceil(Fraction(stop * old, new)) + width, offset


def _resample(frames: torch.Tensor, ratio: Fraction) -> torch.Tensor:
    """Resamples `[channels, frames]`; at least one sample more follows than the frames last."""
    from torchaudio.functional import resample

    step, phases = ratio.as_integer_ratio()
    resampled: torch.Tensor = resample(F.pad(frames, (0, step)), step, phases)
    return resampled
