"""Image classifiers of the timm library, whose classes are the prompts."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.encoders.image import Preprocess
from avgrad.engine.heads import Head
from avgrad.engine.view import ViTView
from avgrad.errors import MediaError, UnsupportedModelError
from avgrad.models.checkpoints import not_loaded
from avgrad.models.registry import Entry, Family, Source, describe_weights, family
from avgrad.models.timm_view import trunk_view

if TYPE_CHECKING:
    from PIL import Image

# The modules of timm whose models are its plain VisionTransformer; those of all others are classes of their own.
MODULES = ("timm.models.vision_transformer", "timm.models.deit")


class TimmClassifier:
    """An image classifier of timm, whose prompts are its classes.

    A class is looked for by its row `w` of the classifier's weight: the score of a layer is the class's logit
    `<w, norm(pooled)>`, not a cosine. That is how the classifier itself scores: it has no L2 norm, whose gradient would
    take from each class what lengthens the features for all. The bias is left out, since its gradient is zero. Rows are
    handed out at unit length, as all prompts are, which scales a map and changes nothing else; with them, the scores of
    a `Localization` are cosines of pooled features and rows, and no logits.

    Args:
        model: what `timm.create_model` gives; a plain `VisionTransformer` with a linear classifier.
        name: what `avgrad.load` calls the model.

    Raises:
        UnsupportedModelError: the model is of a kind that the view cannot express, or has no classifier.
    """

    modalities = ("text",)
    calibration = None

    def __init__(self, model: nn.Module, name: str = "timm") -> None:
        from timm.data.config import resolve_model_data_config

        self.name, self.model = name, model.eval().requires_grad_(False)
        self.vision = classifier_view(model, name)
        config = resolve_model_data_config(model)
        self.preprocess = Preprocess(
            size=min(config["input_size"][1:]),
            patch_size=math.lcm(*self.vision.patch_shape),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            resampling="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        )

    @classmethod
    def from_pretrained(
        cls,
        architecture: str,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TimmClassifier:
        """A classifier by timm's name.

        Args:
            architecture: such as "vit_base_patch16_224", or with the tag of its weights as in
                "vit_base_patch16_224.augreg2_in21k_ft_in1k"; fetched by timm.
            checkpoint: a file to take the weights from instead.
            device: where to put it.
            dtype: of its weights.

        Raises:
            UnsupportedModelError: there is no such model, or the view cannot express it.
            CheckpointError: its weights could not be fetched or read.
        """
        import timm

        name = f"timm:{architecture}"
        reason = refusal(architecture)
        if reason is not None:
            raise UnsupportedModelError(reason)
        try:
            if checkpoint is None:
                model = timm.create_model(architecture, pretrained=True)
            else:
                model = timm.create_model(architecture, checkpoint_path=os.fspath(checkpoint))
        except Exception as error:  # timm, its hub and torch raise many kinds, all for missing weights
            raise not_loaded(name, error) from error
        return cls(model.to(device, dtype), name)

    @property
    def device(self) -> torch.device:
        return self.vision.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision.dtype

    @property
    def num_classes(self) -> int:
        return len(self._rows)

    @property
    def _rows(self) -> Tensor:
        return self.model.get_parameter("head.weight")

    @cached_property
    def class_names(self) -> list[str] | None:
        """The classes' names, synonyms set apart by commas; None where timm does not know what the classes are."""
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset({"num_classes": self.num_classes})
        return list(ImageNetInfo(subset).label_descriptions()) if subset else None

    def class_index(self, label: str) -> int:
        """The index of the class that a label means.

        Args:
            label: an index in digits, a class's whole name ("tabby, tabby cat") or one of its synonyms ("tabby").

        Raises:
            MediaError: there is no such class, or there are several.
        """
        if label.strip().isdecimal():
            index = int(label)
            if index >= self.num_classes:
                raise MediaError(f"{self.name} has no class {index}: its classes are 0 to {self.num_classes - 1}")
            return index
        if self.class_names is None:
            raise MediaError(
                f"the classes of {self.name} have no names here; an index from 0 is expected, not {label!r}"
            )
        wanted = label.strip().casefold()
        found = self._indices.get(wanted, [])
        if len(found) > 1:
            raise MediaError(f"{label!r} names classes {' and '.join(map(str, found))} of {self.name}; say an index")
        if not found:
            close = difflib.get_close_matches(wanted, self._indices, n=3)
            hint = f"close are {', '.join(close)}" if close else "names of its classes and indices are expected"
            raise MediaError(f"{self.name} has no class {label!r}; {hint}")
        return found[0]

    @cached_property
    def _indices(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, description in enumerate(self.class_names or []):
            for name in dict.fromkeys([description, *description.split(",")]):
                indices.setdefault(name.strip().casefold(), []).append(index)
        return indices

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm weight rows `[P, d]`, float32, of P classes, each a name or an index in digits.

        Raises:
            MediaError: there is no such class.
        """
        indices = [self.class_index(text) for text in texts]
        return F.normalize(self._rows[indices].float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit-norm pooled features (what the classifier reads) `[B, d]`, float32, of pixels `[B, 3, h, w]`."""
        return self.vision.encode(pixels).float()

    def pixels(self, image: Image.Image) -> Tensor:
        """timm's own preprocessing of an image for this model: `[3, size, size]`."""
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        transform: Any = create_transform(**resolve_model_data_config(self.model))
        pixels: Tensor = transform(image)
        return pixels


def classifier_view(model: nn.Module, name: str) -> ViTView:
    """The view of a classifier; prompts are rows of its weight, and scores are logits.

    Raises:
        UnsupportedModelError: naming the part that the view cannot express.
    """
    view = trunk_view(model, name)
    if not isinstance(model.get_submodule("head"), nn.Linear):
        raise UnsupportedModelError(f"{name} cannot be explained: it has no classifier, whose classes could be prompts")
    return replace(view, head=Head(view.head.norm, view.head.projection, cosine=False))


def shell(architecture: str, **options: Any) -> nn.Module:
    """One of timm's vision transformers without weights and with one block only: enough to tell whether the view can
    express it, in milliseconds.

    Args:
        architecture: one of `MODULES`'.
        **options: as `timm.create_model` takes them.
    """
    import timm

    with torch.device("meta"):
        model: nn.Module = timm.create_model(architecture, depth=1, **options)
    return model


def is_plain(architecture: str) -> bool:
    """Whether timm builds a model of this name (without a tag) from its plain VisionTransformer, as far as the module
    that defines it tells."""
    import timm

    return timm.is_model(architecture) and timm.models.model_entrypoint(architecture).__module__ in MODULES


def refusal(architecture: str) -> str | None:
    """Why a model of timm cannot be explained; None if it can. Nothing is fetched.

    Args:
        architecture: timm's name, with or without the tag of its weights.
    """
    import timm

    bare, _, tag = architecture.partition(".")
    name = f"timm:{architecture}"
    if not timm.is_model(bare):
        return f"timm has no model {bare!r}; one such as vit_base_patch16_224 is expected"
    tags = [full.partition(".")[2] for full in timm.list_models(f"{bare}.*", pretrained=True)]
    if tag and tag not in tags:
        return f"timm has no weights {tag!r} for {bare}; there are: {', '.join(tags) or 'none'}"
    if not is_plain(bare):
        module = timm.models.model_entrypoint(bare).__module__
        return f"{name} cannot be explained: it is defined in {module}, and {' or '.join(MODULES)} is expected"
    try:
        classifier_view(shell(architecture), name)
    except UnsupportedModelError as error:
        return str(error)
    return None


def pretrained() -> dict[str, dict[str, bool]]:
    """timm's pretrained classifiers that the view can express.

    Returns:
        For each architecture its tags, each with whether its weights are in the cache.
    """
    import timm

    models: dict[str, dict[str, bool]] = {}
    for full in timm.list_models(pretrained=True):
        architecture, _, tag = full.partition(".")
        # tags of one architecture differ in their weights and in whether a classifier came with them
        config = timm.get_pretrained_cfg(full)
        if is_plain(architecture) and config is not None and config.num_classes:
            if architecture not in models and refusal(full) is not None:
                continue
            models.setdefault(architecture, {})[tag] = _is_cached(config)
    return models


def _is_cached(config: Any) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from torch.hub import get_dir

    if config.hf_hub_id:
        files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        if any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
            return True
    return bool(config.url) and (Path(get_dir()) / "checkpoints" / Path(config.url).name).is_file()


@family("timm:NAME")
class TimmFamily(Family):
    """timm's vision transformers."""

    def load(
        self, name: str, *, checkpoint: Source | None, device: torch.device, dtype: torch.dtype, towers: Sequence[str]
    ) -> TimmClassifier:
        return TimmClassifier.from_pretrained(name, checkpoint=checkpoint, device=device, dtype=dtype)

    def names(self) -> list[str]:
        return [f"timm:{architecture}.{tag}" for architecture, tags in pretrained().items() for tag in tags]

    def entries(self) -> list[Entry]:
        return [
            Entry(f"timm:{architecture}.TAG", ("class",), describe_weights(tags))
            for architecture, tags in pretrained().items()
        ]
