"""Perception Encoder Audio-Visual (PE-AV; Vyas et al. 2025, arXiv 2512.19687) of the transformers library.

The library defines the model and prepares texts and waveforms. `pe_av_view.py` has the view, `pe_av_audio.py` what the
model takes of a sound, `pe_av_files.py` its files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.encoders.image import Preprocess
from avgrad.engine.heads import VideoTail
from avgrad.engine.view import ViTView
from avgrad.errors import CheckpointError, InputError
from avgrad.media import Audio
from avgrad.models.checkpoints import not_loaded
from avgrad.models.open_clip import EMPTY_PROMPT
from avgrad.models.pe_av_audio import Waveforms
from avgrad.models.pe_av_files import (
    NAMES,
    build,
    cached_folder,
    check_library,
    load_weights,
    read_preprocess,
    weight_files,
)
from avgrad.models.pe_av_view import pe_av_view
from avgrad.models.registry import TOWERS, Entry, Family, Source, family

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS = 512  # of a text, as in the authors' own preprocessing
# Windows that the audio tower takes at a time: one of 10 seconds needs about 650 MB.
WINDOWS_AT_ONCE = {"cpu": 1, "gpu": 8}


class PeAv:
    """A PE-AV model of transformers.

    Image and prompts meet where the model was trained to bring them together (`PeAudioVideoModel.forward`): a sound's
    embedding (`audio_head`) is compared with the video's (`video_head`) in `logits_audio_video`, a text's
    (`text_video_head`) with the very same output of `video_head` in `logits_video_text`. So one view serves sounds and
    texts alike. Text and sound meet in another pair, `text_audio_head` and `audio_head`: `encode_text_for_sounds` gives
    the texts' side of it, and `encode_text` is never compared with sounds. An image is a video of one frame; image
    prompts are compared with images in the space of `video_head`, which no objective compares with itself.

    We depart from transformers in two places. It scores by the plain product, times a learned scale; scores here are
    cosines, as with every other model, so that a layer's score does not grow with the length of its embedding. And the
    contrastive heads of texts read the first token in front of the text tower's final norm, as in the authors' code and
    in their training (`hidden_states[22]` of the 28 layers of ModernBERT-large), where recent releases of transformers
    give them the token behind it.

    Args:
        model: transformers' PeAudioVideoModel as `pe_av_files.build` makes it, with weights.
        preprocess: how it takes images.
        feature_extractor: transformers' PeAudioFeatureExtractor; None for a model without sounds.
        tokenizer: of its texts; None for a model without texts.
        name: what `avgrad.load` calls the model.

    Raises:
        UnsupportedModelError: the view cannot express the model.
    """

    calibration = None
    understands_words = True

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        name: str = "pe-av",
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.name, self.preprocess, self.tokenizer = name, preprocess, tokenizer
        self.vision: ViTView = pe_av_view(model, name)
        self._audio_preprocess = None if feature_extractor is None else Waveforms(feature_extractor)
        if tokenizer is not None:
            self.vision = replace(self.vision, empty_prompt=self.encode_text([EMPTY_PROMPT])[0])

    @classmethod
    def from_folder(
        cls,
        folder: Source,
        *,
        weights: Source | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        towers: Sequence[str] = TOWERS,
        name: str = "pe-av",
    ) -> PeAv:
        """A model from a folder in the published layout: config.json, the processors' files and the weights.

        Args:
            folder: such as one that `save_pretrained` wrote (model and processors), or one of the hub's cache.
            weights: a file to take the weights from instead of the folder's.
            device: where to put the model.
            dtype: of its weights.
            towers: which of "vision", "audio" and "text" to load; vision is always loaded.
            name: what `avgrad.load` calls the model.

        Raises:
            UnsupportedModelError: transformers is not installed, or the view cannot express the model.
            CheckpointError: a file is missing, cannot be read or does not fit the configuration.
        """
        check_library(name)
        try:
            from transformers import AutoTokenizer, PeAudioFeatureExtractor

            model = build(Path(folder) / "config.json", towers)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if "text" in towers else None
            extractor = PeAudioFeatureExtractor.from_pretrained(folder) if "audio" in towers else None
            preprocess = read_preprocess(Path(folder), model)
            files = [Path(weights)] if weights is not None else weight_files(Path(folder), name)
        except InputError:
            raise
        except Exception as error:  # transformers raises many kinds, nearly all for missing or damaged files
            raise not_loaded(name, error) from error
        load_weights(model, files, dtype, device, name)
        return cls(model, preprocess, extractor, tokenizer, name)

    # ------------------------------------------------------------------ the model

    @property
    def modalities(self) -> tuple[str, ...]:
        """The prompts that the model takes: "audio" and "text", as far as their towers are there."""
        given = {"audio": self._audio_preprocess, "text": self.tokenizer}
        return tuple(tower for tower, processor in given.items() if processor is not None)

    @property
    def device(self) -> torch.device:
        return self.vision.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision.dtype

    @property
    def audio_preprocess(self) -> Waveforms:
        """How it takes sounds.

        Raises:
            CheckpointError: it was loaded without its audio tower.
        """
        self._require("audio")
        assert self._audio_preprocess is not None
        return self._audio_preprocess

    def _require(self, tower: str) -> None:
        if tower not in self.modalities:
            raise CheckpointError(f"{self.name} was loaded without its {tower} tower; load it with towers={TOWERS}")

    def video_view(self, num_frames: int) -> ViTView:
        """The view of videos of several frames: the temporal encoder sees all of them, and each frame's heatmap is of
        the whole video's embedding.

        Its pixels are `[N F, 3, h, w]`, the frames of a video in a row and in order, and all frames of a video have the
        same prompts. In every layer the tokens that the pooler makes of the frames go through the temporal encoder
        together; for each frame LeGrad takes the gradient of this score with respect to the frame's own attention.

        Args:
            num_frames: F, at least 1. The "-16-frame" forms were trained with 16, evenly spread over the video; the
                others with all frames.

        Raises:
            InputError: it is less than 1.
        """
        if num_frames < 1:
            raise InputError(f"num_frames={num_frames} is not accepted; at least 1 is")
        head = self.vision.head
        assert isinstance(head.projection, VideoTail)
        tail = VideoTail(head.projection.function, head.projection.out_features, num_frames)
        return replace(self.vision, head=type(head)(head.norm, tail), num_frames=num_frames)

    # ------------------------------------------------------------------ prompts and images

    @torch.no_grad()
    def encode_audio(self, inputs: Sequence[Tensor]) -> Tensor:
        """Unit-norm embeddings of sounds, each the mean of its windows'.

        Args:
            inputs: of P sounds the windows, `[windows, samples]`, as `audio_preprocess` gives them.

        Returns:
            `[P, D]`, float32.
        """
        self._require("audio")
        audio, device, dtype = self.model.audio_model, self.device, self.dtype
        step = WINDOWS_AT_ONCE["cpu" if device.type == "cpu" else "gpu"]
        windows = [window for sound in inputs for window in sound]
        places: dict[int, list[int]] = {}  # of windows of one length, which go through the tower together
        for place, window in enumerate(windows):
            places.setdefault(len(window), []).append(place)
        found: dict[int, Tensor] = {}
        for alike in places.values():
            for first in range(0, len(alike), step):
                group = alike[first : first + step]
                values = torch.stack([windows[place] for place in group])[:, None].to(device, dtype)
                embeddings = audio.audio_head(audio.audio_encoder(values).pooler_output)
                found.update(zip(group, F.normalize(embeddings.float(), dim=-1), strict=True))
        parts = torch.stack([found[place] for place in range(len(windows))]).split([len(sound) for sound in inputs])
        return F.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)

    def encode_sound(self, sound: Audio) -> Tensor:
        """The unit-norm embedding `[D]`, float32, of an open sound.

        Raises:
            MediaError: the sound is damaged, silent or not finite.
        """
        return self.encode_audio([self.audio_preprocess(sound)])[0]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings `[P, D]`, float32, of P texts, to compare with images and videos."""
        return self._encode_text(texts, "video")

    def encode_text_for_sounds(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings `[P, D]`, float32, of P texts, to compare with sounds (`encode_audio`): what names a
        sound."""
        self._require("audio")
        return self._encode_text(texts, "audio")

    @torch.no_grad()
    def _encode_text(self, texts: Sequence[str], side: str) -> Tensor:
        self._require("text")
        head = getattr(getattr(self.model, f"{side}_model"), f"text_{side}_head")
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        inputs = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
        return F.normalize(head(self.model.text_model(**inputs).last_hidden_state[:, 0]).float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit-norm embeddings `[B, D]`, float32, of preprocessed pixels `[B, 3, h, w]`: videos of one frame."""
        return self.vision.encode(pixels).float()

    def pixels(self, image: Image.Image) -> Tensor:
        """The model's own preprocessing of a frame: squashed to a square; `[3, size, size]`."""
        return self.preprocess(image)


@family(*NAMES)
class PeAvFamily(Family):
    """The published PE-AV models."""

    def load(
        self, name: str, *, checkpoint: Source | None, device: torch.device, dtype: torch.dtype, towers: Sequence[str]
    ) -> PeAv:
        check_library(name)
        weights: Path | None = None
        if checkpoint is None:
            folder = cached_folder(name)
        elif os.path.isdir(checkpoint):
            folder = Path(checkpoint)
        else:  # a file of weights alone belongs to the folder that it is in, or else to the published one
            weights, folder = Path(checkpoint), Path(checkpoint).parent
            folder = folder if (folder / "config.json").is_file() else cached_folder(name)
        if folder is None:
            raise CheckpointError(
                f"the files of {name} are not here; fetch them with `avgrad download {name}`, or name a folder of them "
                "with `--checkpoint FOLDER`"
            )
        return PeAv.from_folder(folder, weights=weights, device=device, dtype=dtype, towers=towers, name=name)

    def names(self) -> list[str]:
        return list(NAMES)

    def entries(self) -> list[Entry]:
        needs = "" if find_spec("transformers") else "needs `pip install avgrad[transformers]`; "
        states = {True: "here", False: "`avgrad download {}`"}
        return [
            Entry(name, ("audio", "text"), needs + states[cached_folder(name) is not None].format(name))
            for name in NAMES
        ]
