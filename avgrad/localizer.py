"""Localizer: the image is set once, and asked about often. The one place where all parts meet."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from avgrad.encoders.audio import log_mel_clips
from avgrad.encoders.text import encode_labels
from avgrad.engine.attribute import Prepared, explain, prepare, resolve_correction
from avgrad.engine.methods import Pooling, check_options, check_pooling, get_method, resolve_layers
from avgrad.errors import MediaError, UnsupportedModelError
from avgrad.localization import Localization
from avgrad.media import load_image, open_audio
from avgrad.models.model import Model
from avgrad.models.registry import load
from avgrad.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]
    AudioSource = str | os.PathLike[str] | bytes | tuple[Tensor | np.ndarray[Any, Any], int]


class Localizer:
    """Finds things in an image by their sound, their spoken name, a text or another image.

    The image's forward pass runs once, in `set_image`; each further prompt costs only its own explanation.

    Args:
        model: a model from `avgrad.load`, or its name.
        method: how heatmaps are made, one of `avgrad.list_methods()`.
        layers: which layers are explained: None for all, k >= 0 from layer k on, negative the last -k, a list exactly.
        pooling: "mean" (LeGrad's) or "cls".
        size: short side in pixels at which the network sees the image; None for the one it was trained with. Larger
            finds smaller things and takes longer.
        keep: keep what the forward pass left for later prompts (about `6 n d` numbers per layer for n tokens of
            width d). Without it, each call runs the forward pass again, in the memory of one layer.
        correction: blank LeGrad maps where a prompt that names nothing is seen, as `avgrad.attribute` does: on for
            models that pool by attention, unless None or 0 is given.
        backward_dtype: torch.bfloat16 makes LeGrad's heatmaps faster and a little coarser, see
            `avgrad.engine.legrad.legrad`; None for the model's own.

    Example:
        >>> import avgrad
        >>> localizer = avgrad.Localizer("mini")                                    # doctest: +SKIP
        >>> localizer.set_image("street.jpg")                                       # doctest: +SKIP
        >>> result = localizer.localize(audio="siren.wav", text=["a drum", "a bell"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model | str = "mini",
        *,
        method: str = "legrad",
        layers: int | Sequence[int] | None = None,
        pooling: Pooling = "mean",
        size: int | None = None,
        keep: bool = True,
        correction: float | Literal["default"] | None = "default",
        backward_dtype: torch.dtype | None = None,
    ) -> None:
        get_method(method)
        if backward_dtype is not None:
            check_options(method, {"backward_dtype": backward_dtype})
        if size is not None and size < 1:
            raise ValueError(f"size={size} is no length in pixels; 224 is, for example")
        self.model: Model = load(model) if isinstance(model, str) else model
        check_pooling(pooling, self.model.vision)
        self.method, self.pooling, self.size, self.keep = method, pooling, size, keep
        self.backward_dtype = backward_dtype
        self.layers = resolve_layers(layers, len(self.model.vision.blocks))
        self.correction = resolve_correction(correction, self.model.vision, method)
        self._image: Image.Image | None = None
        self._prepared: Prepared | None = None
        self._seconds: dict[str, float] = {}

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - start

    def set_image(self, image: ImageSource) -> None:
        """Sets the image that prompts are looked for in.

        Args:
            image: a path, a file's bytes, a PIL image, or an array `[H, W, 3]`, uint8. The whole image is used, its
                proportions kept (up to 3 : 1).

        Raises:
            MediaError: it cannot be read as an image.
        """
        with self._stage("image"):
            loaded = load_image(image)
            pixels = self.model.preprocess.whole(loaded, self.size)[None]
            options = {} if self.backward_dtype is None else {"backward_dtype": self.backward_dtype}
            prepared = prepare(self.model, pixels, self.method, self.layers, self.pooling, keep=self.keep, **options)
        self._image, self._prepared = loaded, prepared

    def encode(
        self,
        audio: AudioSource | Sequence[AudioSource] | None = None,
        text: str | Sequence[str] | None = None,
        speech: AudioSource | Sequence[AudioSource] | None = None,
        *,
        image: ImageSource | Sequence[ImageSource] | None = None,
        templates: Sequence[str] = ("{}",),
    ) -> list[Prompt]:
        """Prompts in this order: audio, speech, text, image; see `localize`, which calls the last `image_prompts`."""
        prompts = []
        for modality, sources in (("audio", audio), ("speech", speech)):
            for number, source in enumerate(_as_list(sources), start=1):
                prompts.append(self._encode_sound(source, modality, number))
        labels = _as_list(text)
        if labels:
            self._require("text")
            embeddings = encode_labels(self.model, labels, templates)
            prompts += [
                Prompt(embedding, label.strip(), "text")
                for label, embedding in zip(labels, embeddings.cpu(), strict=True)
            ]
        images: list[Any] = list(image) if isinstance(image, list | tuple) else [] if image is None else [image]
        for number, source in enumerate(images, start=1):
            pixels = self.model.pixels(load_image(source))
            embedding = self.model.encode_image(pixels[None])[0]
            prompts.append(Prompt(embedding.cpu(), _label(source, "image", number), "image"))
        return prompts

    def _encode_sound(self, source: AudioSource, modality: str, number: int) -> Prompt:
        self._require("audio")
        with open_audio(source) as sound:
            embedding = self.model.encode_clips(log_mel_clips(sound))  # type: ignore[attr-defined]
        return Prompt(embedding.cpu(), _label(source, modality, number), modality)

    def _require(self, modality: str) -> None:
        if modality not in self.model.modalities:
            what = "sound" if modality == "audio" else "text"
            understood = " and ".join(self.model.modalities) or "no prompts"
            raise UnsupportedModelError(
                f"{self.model.name} understands {understood}, so it cannot look for a {what}; "
                "an ImageBind model such as imagebind_huge can"
            )

    def localize(
        self,
        audio: AudioSource | Sequence[AudioSource] | None = None,
        text: str | Sequence[str] | None = None,
        speech: AudioSource | Sequence[AudioSource] | None = None,
        prompts: Prompt | Sequence[Prompt] | None = None,
        *,
        image_prompts: ImageSource | Sequence[ImageSource] | None = None,
        templates: Sequence[str] = ("{}",),
    ) -> Localization:
        """Looks for P prompts in the image that was set.

        Args:
            audio: sounds: paths, files' bytes, or pairs of a waveform `[channels, samples]` and its sample rate.
            text: texts.
            speech: spoken words, given as sounds are.
            prompts: prompts made before, by `encode` or as combinations.
            image_prompts: images of what to look for, each as `set_image` takes it; the model sees them cropped to
                their central square, as it was trained.
            templates: texts with `{}` where the label goes; the embeddings of a label's templates are averaged.

        Returns:
            The prompts in the order audio, speech, text, image prompts, prompts, each in the order given, with heatmaps
            of the size of the image.

        Raises:
            MediaError: a prompt cannot be read, or there is none.
            UnsupportedModelError: the model does not understand a prompt's modality.
            RuntimeError: no image was set.
        """
        if self._image is None or self._prepared is None:
            raise RuntimeError("no image is set: call set_image first")
        with self._stage("prompts"):
            given = self.encode(audio, text, speech, image=image_prompts, templates=templates) + _as_list(prompts)
            if not given:
                raise MediaError(
                    "there is nothing to look for: give at least one sound, spoken word, text, image or prompt"
                )
            view = self.model.vision
            for prompt in given:
                if prompt.embedding.shape != (view.embed_dim,):
                    raise MediaError(
                        f"the prompt {prompt.label!r} has an embedding of shape {list(prompt.embedding.shape)}, and "
                        f"{self.model.name} has [{view.embed_dim}]: prompts belong to the model that made them"
                    )
            directions = torch.stack([prompt.direction for prompt in given]).to(view.device, view.dtype)
        with self._stage("heatmaps"):
            width, height = self._image.size
            found = explain(self._prepared, directions, (height, width), correction=self.correction)
            scores = (found.embedding.float() @ directions.float().T)[0]
        return Localization(
            image=self._image,
            prompts=given,
            heatmaps=found.heatmaps[0].float().cpu(),
            scores=scores.cpu(),
            layers=found.layers,
            layer_maps=found.layer_maps[0].float().cpu(),
            model=self.model.name,
            method=self.method,
            seconds=dict(self._seconds),
        )


def _label(source: Any, modality: str, number: int) -> str:
    """What to call a prompt: the name of its file, or its modality and number."""
    return os.path.basename(os.fspath(source)) if isinstance(source, str | os.PathLike) else f"{modality} {number}"


def _as_list(value: Any) -> list[Any]:
    """One or several of something, as a list. A pair of a waveform and its sample rate is one sound."""
    if value is None:
        return []
    if isinstance(value, str | bytes | os.PathLike | Prompt):
        return [value]
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int):
        return [value]
    return list(value)


def localize(
    image: ImageSource,
    audio: AudioSource | Sequence[AudioSource] | None = None,
    text: str | Sequence[str] | None = None,
    speech: AudioSource | Sequence[AudioSource] | None = None,
    *,
    model: Model | str = "mini",
    image_prompts: ImageSource | Sequence[ImageSource] | None = None,
    templates: Sequence[str] = ("{}",),
    **options: Any,
) -> Localization:
    """Looks for prompts in one image: `Localizer` in one call.

    Args:
        image: as `Localizer.set_image` takes it.
        audio, text, speech, image_prompts, templates: as `Localizer.localize` takes them.
        model: a model from `avgrad.load`, or its name.
        **options: `method`, `layers`, `pooling`, `size`, `correction` and `backward_dtype` of `Localizer`.

    Raises:
        MediaError, UnsupportedModelError, CheckpointError: as there.
    """
    localizer = Localizer(model, keep=False, **options)
    localizer.set_image(image)
    return localizer.localize(audio, text, speech, image_prompts=image_prompts, templates=templates)
