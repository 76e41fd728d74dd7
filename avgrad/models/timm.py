"""Vision transformers of the timm library: classifiers, whose classes are the prompts, and models without classes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.encoders.image import Preprocess
from avgrad.engine.view import ViTView
from avgrad.errors import PromptError, UnsupportedModelError
from avgrad.models.checkpoints import not_loaded
from avgrad.models.labels import Labels
from avgrad.models.registry import Entry, Family, Source, describe_weights, family
from avgrad.models.timm_names import has_classes, pretrained, refusal, refused
from avgrad.models.view import views

if TYPE_CHECKING:
    from PIL import Image


@views(
    "timm.models.vision_transformer.VisionTransformer",
    "timm.models.deit.VisionTransformerDistilled",
    "timm.models.eva.Eva",
    "timm.models.beit.Beit",
    "timm.models.vision_transformer_relpos.VisionTransformerRelPos",
    "timm.models.naflexvit.NaFlexVit",
)
def timm_view(model: nn.Module, name: str) -> ViTView:
    """The view of a vision transformer of timm, proved against the model itself."""
    from avgrad.models.timm_view import model_view

    return model_view(model, name)


class TimmModel:
    """A vision transformer of timm.

    Where it is a classifier, its prompts are its classes. A class is looked for by its row `w` of the classifier's
    weight: the score of a layer is the class's logit `<w, norm(pooled)>`, not a cosine. That is how the classifier
    itself scores: it has no L2 norm, whose gradient would take from each class what lengthens the features for all. The
    bias is left out, since its gradient is zero. Rows are handed out at unit length, as all prompts are, which scales a
    map and changes nothing else; with them, the scores of a `Localization` are cosines of pooled features and rows, and
    no logits. A distilled model's logit is the mean of two heads', each of which reads a token of its own: its features
    are both tokens side by side, and so are the rows.

    Where it has no classes (DINOv2, DINOv3, SigLIP's and CLIP's image towers), prompts are images and embeddings, and
    scores are cosines. The head of a CLIP-like model is its projection, and embeddings are what it gives.

    Args:
        model: what `timm.create_model` gives.
        name: what `avgrad.load` calls the model.

    Raises:
        UnsupportedModelError: the view cannot express the model.
    """

    calibration = None

    def __init__(self, model: nn.Module, name: str = "timm") -> None:
        from timm.data.config import resolve_model_data_config

        self.name, self.model = name, model.eval().requires_grad_(False)
        self.vision = timm_view(model, name)
        # scores are logits where prompts are classes
        self.modalities: tuple[str, ...] = () if self.vision.head.cosine else ("text",)
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
    ) -> TimmModel:
        """A model by timm's name.

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
        """Number of classes; 0 where the model has none."""
        return len(self._rows()) if self.modalities else 0

    def _rows(self) -> Tensor:
        """The classes' rows `[classes, d]`; of a distilled model those of both heads, side by side."""
        heads = [name for name in ("head", "head_dist") if hasattr(self.model, name)]
        return torch.cat([self.model.get_parameter(f"{head}.weight") for head in heads], dim=1)

    @cached_property
    def class_names(self) -> list[str] | None:
        """The classes' names, synonyms set apart by commas; None where timm does not know what the classes are."""
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset({"num_classes": self.num_classes})
        return list(ImageNetInfo(subset).label_descriptions()) if subset else None

    @cached_property
    def _labels(self) -> Labels:
        return Labels(self.name, self.num_classes, self.class_names)

    def class_index(self, label: str) -> int:
        """The index of the class that a label means.

        Args:
            label: an index in digits, a class's whole name ("tabby, tabby cat") or one of its synonyms ("tabby").

        Raises:
            PromptError: there is no such class, or there are several; or the model has no classes.
        """
        if not self.modalities:
            raise PromptError(f"{self.name} has no classes; images and embeddings are accepted as prompts")
        return self._labels.index(label)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm weight rows `[P, d]`, float32, of P classes, each a name or an index in digits.

        Raises:
            PromptError: there is no such class; or the model has no classes.
        """
        indices = [self.class_index(text) for text in texts]
        return F.normalize(self._rows()[indices].float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit-norm embeddings `[B, D]`, float32, of pixels `[B, 3, h, w]`: what the classifier reads, or what a model
        without classes gives."""
        return self.vision.encode(pixels).float()

    def pixels(self, image: Image.Image) -> Tensor:
        """timm's own preprocessing of an image for this model: `[3, h, w]`."""
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        transform: Any = create_transform(**resolve_model_data_config(self.model))
        pixels: Tensor = transform(image)
        return pixels


@family("timm:NAME")
class TimmFamily(Family):
    """timm's vision transformers."""

    def load(
        self, name: str, *, checkpoint: Source | None, device: torch.device, dtype: torch.dtype, towers: Sequence[str]
    ) -> TimmModel:
        return TimmModel.from_pretrained(name, checkpoint=checkpoint, device=device, dtype=dtype)

    def names(self) -> list[str]:
        return [f"timm:{architecture}.{tag}" for architecture, tags in pretrained().items() for tag in tags]

    def entries(self) -> list[Entry]:
        # tags of one architecture differ in whether a classifier came with them
        return [
            Entry(
                f"timm:{architecture}.TAG",
                ("class",) if any(has_classes(f"{architecture}.{tag}") for tag in tags) else ("image",),
                describe_weights(tags),
            )
            for architecture, tags in pretrained().items()
        ]

    def refused(self) -> list[tuple[str, str]]:
        return [(f"timm:{name}", reason) for name, reason in refused()]
