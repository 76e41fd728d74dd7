"""Localizer: an image is set once, and prompts are located in it. The one place where all parts meet."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from avgrad.encoders.text import encode_labels
from avgrad.engine.attribute import Correction, Prepared, explain, normalizes_first
from avgrad.engine.methods import Pooling, check_options
from avgrad.errors import InputError, PromptError, UnsupportedModelError
from avgrad.localization import Localization, versions
from avgrad.media import as_list, load_image, open_audio, source_name
from avgrad.models.model import Model
from avgrad.models.registry import load_cached
from avgrad.presence import Presence, PresenceMode
from avgrad.prompts import Prompt
from avgrad.settings import Layers, SetImage, Settings, at_least
from avgrad.stream import stream

if TYPE_CHECKING:
    from PIL import Image

    ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any] | Tensor
    AudioSource = str | os.PathLike[str] | bytes | tuple[Tensor | np.ndarray[Any, Any], int]


class Localizer:
    """Locates sounds, spoken words, texts and images in an image.

    The image's forward pass runs once, in `set_image`; each further prompt costs only its own explanation.

    Threads may share a Localizer. Each works on the image that it set last itself; a thread that has set none works on
    the one that any thread set last.

    Args:
        model: a model from `avgrad.load`, or its name. Models loaded by name are shared, see
            `avgrad.models.registry.load_cached`.
        device: where to load a model given by name; the CPU by default.
        dtype: of the weights of a model given by name, as `avgrad.load` takes it; float32 by default.
        method: how heatmaps are made, one of `avgrad.list_methods()`.
        layers: which layers are explained: None for all, k >= 0 from layer k on, negative the last -k, a list exactly.
        pooling: what a layer's score is of: "mean" of all tokens (LeGrad's), or "cls"; ignored when the model pools by
            attention.
        size: short side in pixels at which the network sees the image; None for the one it was trained with. Larger
            finds smaller objects and takes longer.
        keep: keep what the forward pass left for later prompts (for LeGrad about `6 n d` numbers per layer for n tokens
            of width d). Without it, each call runs the forward pass again, in the memory of one layer.
        correction: zero LeGrad maps where that of the empty prompt exceeds this, as `avgrad.attribute` does: 0.8 by
            default for models that pool by attention; None or 0 for not.
        presence: where `Localization.presence` comes from: "auto" for a calibration of the model, if there is one;
            "reference" for a comparison with everyday names, which any model with a text tower allows; None for not at
            all. See `avgrad.presence`.
        **options: the method's own, such as `backward_dtype=torch.bfloat16` or `relu=False` of "legrad".

    Raises:
        InputError: a wrong argument.
        UnsupportedModelError, CheckpointError: as `avgrad.load`, for a model given by name.

    Example:
        >>> import avgrad
        >>> localizer = avgrad.Localizer("mini")                                    # doctest: +SKIP
        >>> localizer.set_image("street.jpg")                                       # doctest: +SKIP
        >>> result = localizer.localize(audio="siren.wav", text=["a drum", "a bell"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Model | str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        method: str = "legrad",
        layers: Layers = None,
        pooling: Pooling = "mean",
        size: int | None = None,
        keep: bool = True,
        correction: Correction = "default",
        presence: PresenceMode | None = "auto",
        **options: Any,
    ) -> None:
        if isinstance(model, str):
            check_options(method, options)  # before weights are loaded
            model = load_cached(model, device=device or "cpu", dtype=dtype or torch.float32)
        elif device is not None or dtype is not None:
            raise InputError("device and dtype go with a model's name; give them to avgrad.load, or move the model")
        self.model: Model = model
        self.size, self.keep = None if size is None else at_least("size", size), keep
        self.settings = Settings.checked(self.model, method, layers, pooling, correction, options)
        self.presence = None if presence is None else Presence(self.model, presence)
        self._own = threading.local()
        self._last: SetImage | None = None

    # ------------------------------------------------------------------ images

    def set_image(self, image: ImageSource) -> None:
        """Sets the image that prompts are located in. After other weights are loaded into the model, set it again.

        Args:
            image: a path, a file's bytes, a PIL image, an array `[H, W, 3]` or a tensor `[3, H, W]`; arrays and tensors
                are uint8, or floating-point in [0, 1]. The whole image is used, its proportions kept (up to 3 : 1).

        Raises:
            MediaError: it cannot be read as an image; the last one stays.
        """
        self._own.image = self._last = self._prepared(load_image(image), source_name(image))

    def _prepared(self, image: Image.Image, name: str, pixels: Tensor | None = None) -> SetImage:
        start = time.perf_counter()
        if pixels is None:
            pixels = self.model.preprocess.whole(image, self.size)[None]
        prepared = self.settings.prepare(pixels, self.keep)
        place = self.model.vision.device, self.model.vision.dtype
        return SetImage(image, name, pixels, prepared, place, time.perf_counter() - start)

    def _current(self) -> SetImage:
        """The image of this thread."""
        current: SetImage | None = getattr(self._own, "image", None) or self._last
        if current is None:
            raise InputError("no image is set; call set_image first")
        if current.place != (self.model.vision.device, self.model.vision.dtype):  # the model was moved since
            current = self._own.image = self._prepared(current.image, current.name, current.pixels)
        return current

    # ------------------------------------------------------------------ prompts

    def encode(
        self,
        *,
        audio: AudioSource | Iterable[AudioSource] | None = None,
        text: str | Iterable[str] | None = None,
        speech: AudioSource | Iterable[AudioSource] | None = None,
        image: ImageSource | Iterable[ImageSource] | None = None,
        templates: str | Sequence[str] = "{}",
    ) -> list[Prompt]:
        """Prompts in the order audio, speech, text, image; the arguments are those of `localize`.

        Raises:
            MediaError: a sound or an image cannot be read.
            PromptError: an empty text, an unknown class, or a template without `{}`.
            UnsupportedModelError: the model does not take a prompt of this modality.
        """
        prompts = []
        for modality, sources in (("audio", audio), ("speech", speech)):
            for number, source in enumerate(as_list(sources), start=1):
                self.require("audio")
                with open_audio(source) as sound:
                    embedding = self.model.encode_sound(sound)  # type: ignore[attr-defined]
                prompts.append(Prompt(embedding.cpu(), _label(source, modality, number), modality))
        labels = as_list(text)
        if labels:
            self.require("text")
            embeddings = encode_labels(self.model, labels, templates).cpu()
            texts = zip(labels, embeddings, strict=True)
            prompts += [Prompt(embedding, label.strip(), "text") for label, embedding in texts]
        for number, source in enumerate(as_list(image), start=1):
            embedding = self.model.encode_image(self.model.pixels(load_image(source))[None])[0]
            prompts.append(Prompt(embedding.cpu(), _label(source, "image", number), "image"))
        return prompts

    def require(self, modality: str) -> None:
        """Refuses prompts of a modality ("audio" or "text") that the model does not take.

        Raises:
            UnsupportedModelError: it does not.
        """
        if modality not in self.model.modalities:
            what = "sounds" if modality == "audio" else "texts"
            taken = " and ".join([*self.model.modalities, "image"])
            raise UnsupportedModelError(
                f"{self.model.name} takes {taken} prompts, not {what}; imagebind_huge and pe-av-base do, for example"
            )

    def checked_prompts(
        self, prompts: Prompt | Iterable[Prompt] | None, sources: Mapping[str, Any], required: bool = True
    ) -> list[Prompt]:
        """All prompts of a call, checked against the model.

        Args:
            prompts: made before.
            sources: the other arguments of `encode`, by name.
            required: whether there has to be one.

        Raises:
            MediaError, PromptError, UnsupportedModelError: as `localize`.
        """
        given = [*self.encode(**sources), *as_list(prompts)]
        if not given and required:
            raise PromptError("there is no prompt; give at least one of audio, text, speech, image and prompts")
        width = self.model.vision.embed_dim
        for prompt in given:
            if not isinstance(prompt, Prompt):
                raise PromptError(f"prompts hold a {type(prompt).__name__}; avgrad.Prompt is expected, as encode gives")
            if prompt.embedding.shape != (width,):
                raise PromptError(
                    f"prompt {prompt.label!r} has an embedding of width {len(prompt.embedding)}, and {self.model.name} "
                    f"has {width}: prompts belong to the model that made them"
                )
            length = float(prompt.embedding.norm())
            if not 0 < length < float("inf"):
                raise PromptError(f"prompt {prompt.label!r} has an embedding of length {length} and so no direction")
        return given

    # ------------------------------------------------------------------ results

    def localize(
        self,
        *,
        audio: AudioSource | Iterable[AudioSource] | None = None,
        text: str | Iterable[str] | None = None,
        speech: AudioSource | Iterable[AudioSource] | None = None,
        image: ImageSource | Iterable[ImageSource] | None = None,
        prompts: Prompt | Iterable[Prompt] | None = None,
        templates: str | Sequence[str] = "{}",
        method: str | None = None,
        layers: Layers | EllipsisType = ...,
        pooling: Pooling | None = None,
        correction: Correction | EllipsisType = ...,
        **options: Any,
    ) -> Localization:
        """Locates P prompts in the image that was set.

        Args:
            audio: sounds: paths, files' bytes, or pairs of a waveform `[channels, samples]` and its sample rate.
            text: texts; for classifiers names or indices of classes.
            speech: spoken words, given as sounds are.
            image: images of what to look for, each as `set_image` takes it; the model sees them cropped to their
                central square, as it was trained.
            prompts: prompts made before, by `encode` or as combinations.
            templates: a text, or several, with `{}` where the label goes, such as "a photo of a {}"; the embeddings of
                a label's templates are averaged.
            method, layers, pooling, correction, **options: for this call instead of the Localizer's own; another
                method, other layers or other options run the forward pass again. With another method, the Localizer's
                options and correction do not apply.

        Returns:
            The prompts in the order audio, speech, text, image, prompts, each in the order given, with heatmaps of the
            size of the image.

        Raises:
            MediaError: a sound or an image cannot be read.
            PromptError: there is no prompt, or one cannot be used.
            UnsupportedModelError: the model does not take a prompt's modality.
            InputError: no image was set, or a wrong argument.
        """
        settings = self.settings.changed(method, layers, pooling, correction, options)
        current, start = self._current(), time.perf_counter()
        sources = {"audio": audio, "text": text, "speech": speech, "image": image, "templates": templates}
        given = self.checked_prompts(prompts, sources)
        encoded = time.perf_counter()
        prepared = current.prepared
        if not settings.share_pass(self.settings):
            prepared = settings.prepare(current.pixels, keep=False)
        result = self.results(prepared, [current.image], [current.name], [given], settings)[0]
        seconds = {"image": current.seconds, "prompts": encoded - start, "heatmaps": time.perf_counter() - encoded}
        return replace(result, seconds=seconds)

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        audio: AudioSource | Iterable[AudioSource] | None = None,
        text: str | Iterable[str] | None = None,
        speech: AudioSource | Iterable[AudioSource] | None = None,
        image: ImageSource | Iterable[ImageSource] | None = None,
        prompts: Prompt | Iterable[Prompt] | None = None,
        templates: str | Sequence[str] = "{}",
        batch_size: int = 16,
        workers: int = 2,
    ) -> Iterator[Localization]:
        """Locates the same prompts in many images.

        Prompts are encoded once. Images of equal preprocessed shape share a forward pass, and the next ones are decoded
        meanwhile. The image of `set_image` is neither used nor changed.

        Args:
            images: any iterable of what `set_image` takes; it is read as far ahead as needed.
            audio, text, speech, image, prompts, templates: as in `localize`.
            batch_size: the largest number of images in a forward pass. Memory grows with it, see `keep`; up to four
                times as many decoded images wait for others of their shape.
            workers: threads that decode images.

        Returns:
            An iterator over one result per image, in the order of the images.

        Raises:
            InputError: as `localize`, at once; and at the place of an image that cannot be read a MediaError that names
                it, which ends the stream.
        """
        sources = {"audio": audio, "text": text, "speech": speech, "image": image, "templates": templates}
        given = self.checked_prompts(prompts, sources)
        return stream(self, images, given, at_least("batch_size", batch_size), at_least("workers", workers))

    def results(
        self,
        prepared: Prepared,
        images: Sequence[Image.Image],
        names: Sequence[str],
        prompts: Sequence[list[Prompt]],
        settings: Settings,
    ) -> list[Localization]:
        """A result for each image of a batch.

        Args:
            prepared: the forward pass over B images.
            images, names: the B images.
            prompts: P checked prompts of each image; one list for all.
            settings: those of `prepared`.
        """
        view = prepared.view
        stacked = [torch.stack([prompt.direction for prompt in own]) for own in prompts]
        directions = torch.stack(stacked).to(view.device, view.dtype).expand(len(images), -1, -1)
        # on the patch grid: each result upsamples its own maps when its heatmaps are read
        found = explain(
            prepared, directions, view.grid(prepared.pixels), normalize=False, correction=settings.correction
        )
        embeddings = found.embedding.float()
        scores = (directions.float() @ embeddings[:, :, None])[..., 0]
        presence = self._presences(embeddings, prompts, scores)
        return [
            Localization(
                image=image,
                prompts=prompts[index % len(prompts)],
                scores=scores[index].cpu(),
                maps=found.heatmaps[index].float().cpu(),
                layer_maps=found.layer_maps[index].float().cpu(),
                layers=found.layers,
                model=self.model.name,
                method=settings.method,
                options={
                    "pooling": settings.pooling,
                    "size": self.size,
                    "correction": settings.correction,
                    **settings.options,
                },
                normalized_first=normalizes_first(view),
                name=name,
                device=str(view.device),
                dtype=str(view.dtype).removeprefix("torch."),
                versions=versions(),
                presence=None if presence is None else presence[index],
            )
            for index, (image, name) in enumerate(zip(images, names, strict=True))
        ]

    def _presences(self, images: Tensor, prompts: Sequence[list[Prompt]], scores: Tensor) -> Tensor | None:
        """Probabilities `[B, P]`; None where they are not asked for, or all unknown."""
        if self.presence is None:
            return None
        groups = [(slice(None), prompts[0])]
        if len(prompts) > 1:
            groups = [(slice(index, index + 1), own) for index, own in enumerate(prompts)]
        found = torch.cat([self.presence(images[rows], own, scores[rows]) for rows, own in groups])
        return None if found.isnan().all() else found


def _label(source: Any, modality: str, number: int) -> str:
    """What to call a prompt: the name of its file, or its modality and number."""
    return source_name(source) or f"{modality} {number}"


def localize(
    source: ImageSource,
    /,
    *,
    model: Model | str,
    audio: AudioSource | Iterable[AudioSource] | None = None,
    text: str | Iterable[str] | None = None,
    speech: AudioSource | Iterable[AudioSource] | None = None,
    image: ImageSource | Iterable[ImageSource] | None = None,
    prompts: Prompt | Iterable[Prompt] | None = None,
    templates: str | Sequence[str] = "{}",
    **options: Any,
) -> Localization:
    """Locates prompts in one image: `Localizer` in one call.

    Args:
        source: the image, as `Localizer.set_image` takes it.
        model: a model from `avgrad.load`, or its name. The models given by name last stay loaded for further calls, see
            `avgrad.models.registry.load_cached`.
        audio, text, speech, image, prompts, templates: prompts, as `Localizer.localize` takes them.
        **options: further arguments of `Localizer`: `device`, `dtype`, `method`, `layers`, `pooling`, `size`,
            `correction`, `presence` and the method's own options.

    Raises:
        MediaError, PromptError, UnsupportedModelError, CheckpointError, InputError: as there.

    Example:
        >>> import avgrad
        >>> avgrad.localize("street.jpg", model="mini", text="a guitar")  # doctest: +SKIP
    """
    localizer = Localizer(model, **{"keep": False, **options})
    localizer.set_image(source)
    return localizer.localize(audio=audio, text=text, speech=speech, image=image, prompts=prompts, templates=templates)
