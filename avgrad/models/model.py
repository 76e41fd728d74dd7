"""What every model offers, whatever family it is of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from avgrad.encoders.image import Preprocess
from avgrad.engine.view import ViTView
from avgrad.media import Audio

if TYPE_CHECKING:
    from PIL import Image


class Calibration(NamedTuple):
    """Turns a score into a probability: the logit is `scale * score + bias`.

    Attributes:
        scale: learned temperature.
        bias: learned bias.
    """

    scale: float
    bias: float

    def probabilities(self, scores: Tensor) -> Tensor:
        """`probability` of each score, float64."""
        return torch.sigmoid(self.scale * scores.double() + self.bias)

    def probability(self, score: float) -> float:
        """How likely an object with this score (cosine similarity) is in the image, in [0, 1]."""
        return 1 / (1 + math.exp(-(self.scale * score + self.bias)))


class Model(Protocol):
    """A model as `avgrad.load` gives it.

    Attributes:
        name: what `avgrad.load` calls it.
        preprocess: how it takes whole images.
        modalities: prompts it takes besides images and embeddings: "audio" and "text", "text" (for classifiers: class
            names), or none.
        calibration: turns a score into a probability; None for models whose scores are not calibrated.
        vision: the view of its image tower.
    """

    name: str
    preprocess: Preprocess

    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def calibration(self) -> Calibration | None: ...
    @property
    def vision(self) -> ViTView: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings `[P, D]`, float32, of P texts."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit-norm embeddings `[B, D]`, float32, of preprocessed pixels `[B, 3, h, w]`."""
        ...

    def pixels(self, image: Image.Image) -> Tensor:
        """The model's original preprocessing of an image: `[3, size, size]`."""
        ...


class AudioPreprocess(Protocol):
    """How a model takes sounds: cheap work on the CPU, done beside the model; it can be pickled.

    Attributes:
        sample_rate: of `clip`'s waveforms, in Hz.
        clip_seconds: length of the sound that one clip covers.
    """

    @property
    def sample_rate(self) -> int: ...
    @property
    def clip_seconds(self) -> float: ...
    def __call__(self, audio: Audio, span: tuple[float, float] | None = None) -> Tensor:
        """What the audio tower takes of a sound, or of its part from `span[0]` to `span[1]` seconds.

        Raises:
            MediaError: the sound is damaged, silent or not finite, or has no such part.
        """
        ...

    def clip_times(self, duration: float) -> list[tuple[float, float]]:
        """Begin and end in seconds of each part that is encoded of a sound of so many seconds; an end may lie beyond
        the sound's."""
        ...

    def clip(self, waveform: Tensor) -> Tensor:
        """What the audio tower takes of one clip, float32 `[channels, samples]` at `sample_rate`; silence too."""
        ...


class AudioModel(Model, Protocol):
    """A model that takes sounds."""

    @property
    def audio_preprocess(self) -> AudioPreprocess: ...
    @property
    def understands_words(self) -> bool:
        """Whether the embedding of recorded words is of what they say, and not only of somebody speaking."""
        ...

    def encode_audio(self, inputs: Sequence[Tensor]) -> Tensor:
        """Unit-norm embeddings `[P, D]`, float32, of P sounds as `audio_preprocess` gives them."""
        ...

    def encode_sound(self, sound: Audio) -> Tensor:
        """The unit-norm embedding `[D]`, float32, of an open sound."""
        ...
