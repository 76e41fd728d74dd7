"""Vision transformers of the transformers library: CLIP-like models with their texts, classifiers with their classes,
and models without either, which take images and embeddings as prompts.

The library loads them, from the hub's cache, the hub or a folder; its own processors and tokenizers prepare what they
take. The views are in `huggingface_clip.py`, `huggingface_siglip.py`, `huggingface_vit.py` and `huggingface_dino.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avgrad.encoders.image import CLIP_MEAN, CLIP_STD, Preprocess
from avgrad.engine.parts import Linear
from avgrad.engine.view import ViTView
from avgrad.errors import CheckpointError, PromptError, UnsupportedModelError
from avgrad.models.checkpoints import not_loaded
from avgrad.models.huggingface_names import CLASSIFIERS, HEADLESS, WITH_TEXTS
from avgrad.models.labels import Labels
from avgrad.models.open_clip import EMPTY_PROMPT
from avgrad.models.registry import Entry, Family, Source, family
from avgrad.models.view import build_view, find_builder

if TYPE_CHECKING:
    from PIL import Image

# Weights that checkpoints may lack: the image embedding does not read them.
UNREAD = ("mask_token", "position_ids")


class HuggingFace:
    """A vision transformer of transformers with its processor.

    A classifier's prompts are its classes, as with `avgrad.models.timm.TimmModel`: rows of its weight, by which it
    scores with a plain product.

    Args:
        model: a model of transformers; `avgrad.view` says which are accepted.
        image_processor: the model's own, as `AutoImageProcessor.from_pretrained` gives it.
        tokenizer: the model's own, for a model with a text tower.
        name: what `avgrad.load` calls the model.

    Raises:
        UnsupportedModelError: the view cannot express the model.
    """

    calibration = None

    def __init__(
        self, model: nn.Module, image_processor: Any, tokenizer: Callable[..., Any] | None = None, name: str = "hf"
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.name, self.tokenizer = name, tokenizer
        self.image_processor = image_processor
        self.vision: ViTView = build_view(model, name)
        self.preprocess = _preprocess(image_processor, self.vision, name)
        names = list(getattr(model.config, "id2label", {}).values())
        named = names and names != [f"LABEL_{index}" for index in range(len(names))]
        self._rows = _rows(model, name)
        self._labels = None if self._rows is None else Labels(name, len(self._rows()), names if named else None)
        if self.vision.pooler is not None and self._encodes_text:
            self.vision = replace(self.vision, empty_prompt=self.encode_text([EMPTY_PROMPT])[0])

    @classmethod
    def from_pretrained(
        cls, source: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> HuggingFace:
        """A model by its name on the hub, or from a folder.

        Args:
            source: such as "openai/clip-vit-base-patch16", fetched by transformers where it is not in its cache; or a
                folder that `save_pretrained` wrote (model and processor).
            device: where to put it.
            dtype: of its weights.

        Raises:
            UnsupportedModelError: transformers is not installed, or the view cannot express the model.
            CheckpointError: its configuration, weights or processor could not be fetched or read.
        """
        name = f"hf:{source}"
        if find_spec("transformers") is None:
            raise UnsupportedModelError(f"{name} needs the transformers package: `pip install avgrad[transformers]`")
        try:
            from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            # refused before the weights are fetched: the shape of the model needs none
            with torch.device("meta"):
                shell = _model_class(config, name)(config)
            build_view(shell.eval(), name)
            with _quiet():  # what is missing is checked here
                model, report = type(shell).from_pretrained(source, dtype=dtype, output_loading_info=True)
            _check_report(model, report, name)
            processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
            tokenizer = None
            if hasattr(model, "get_text_features"):
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = model.to(device)
        except (UnsupportedModelError, CheckpointError):
            raise
        except Exception as error:  # transformers, its hub and torch raise many kinds, nearly all for missing files
            raise not_loaded(name, error) from error
        return cls(model, processor, tokenizer, name)

    @property
    def modalities(self) -> tuple[str, ...]:
        """("text",) for a model with a text tower, and for a classifier, whose texts are its classes; else none."""
        return ("text",) if self._encodes_text or self._labels is not None else ()

    @property
    def _encodes_text(self) -> bool:
        return self.tokenizer is not None and hasattr(self.model, "get_text_features")

    @property
    def device(self) -> torch.device:
        return self.vision.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision.dtype

    @property
    def class_names(self) -> list[str] | None:
        """The names of a classifier's classes; None where they have none."""
        return None if self._labels is None else self._labels.names

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings `[P, D]`, float32, of P texts; of a classifier, the weight rows of P classes, each given
        by a name or an index in digits.

        Raises:
            PromptError: there is no such class, or the model takes no texts.
        """
        if self._labels is not None and self._rows is not None:
            indices = [self._labels.index(text) for text in texts]
            return F.normalize(self._rows()[indices].float(), dim=-1)
        if self.tokenizer is None or not self._encodes_text:
            raise PromptError(f"{self.name} takes no texts; images and embeddings are accepted")
        text_config = self.model.config.text_config
        length = min(getattr(self.tokenizer, "model_max_length", 1 << 30), text_config.max_position_embeddings)
        # SigLIP reads its last token, which was padding in its training too
        padding = "max_length" if "siglip" in self.model.config.model_type else True
        tokens = self.tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        found = self.model.get_text_features(**tokens.to(self.device))
        embedding: Tensor = found.pooler_output
        return F.normalize(embedding.float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit-norm embeddings `[B, D]`, float32, of preprocessed pixels `[B, 3, h, w]`."""
        return self.vision.encode(pixels).float()

    def pixels(self, image: Image.Image) -> Tensor:
        """The model's own preprocessing of an image: `[3, h, w]`."""
        inputs = self.image_processor(images=image, return_tensors="pt")
        pixels: Tensor = inputs["pixel_values"][0]
        if "spatial_shapes" not in inputs:
            return pixels
        rows, columns = inputs["spatial_shapes"][0].tolist()  # SigLIP 2 NaFlex: patches, padded to the same number
        side = self.preprocess.patch_size
        patches = pixels[: rows * columns].view(rows, columns, side, side, 3)
        return patches.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its warnings, such as its table of missing weights."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _model_class(config: Any, name: str) -> Any:
    """The class that a checkpoint was saved from, or, where that has no view, the bare model of its kind."""
    import transformers
    from transformers import AutoModel

    saved = [getattr(transformers, architecture, None) for architecture in config.architectures or ()]
    bare: Any = AutoModel._model_mapping.get(type(config), None)
    for cls in (*saved, bare):
        if cls is not None and find_builder(cls) is not None:
            return cls
    what = next((cls.__name__ for cls in (*saved, bare) if cls is not None), config.model_type)
    raise UnsupportedModelError(f"{name} cannot be explained: it is a {what}, which has no view")


def _check_report(model: Any, report: dict[str, Any], name: str) -> None:
    """Refuses a checkpoint that lacks weights, which transformers would leave random."""
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(UNREAD))
    if any(key.startswith("pooler.") for key in missing):
        model.pooler = None  # the checkpoint of a model with another head, whose bare model has no pooler
        missing = [key for key in missing if not key.startswith("pooler.")]
    wrong = missing or [key for key, *_ in report["mismatched_keys"]]
    if wrong:
        raise CheckpointError(f"the weights of {name} lack {wrong[0]}; a complete checkpoint is expected")


class _Rows:
    """The rows `[classes, D]` by which a classifier scores its features: its weight, or those of two side by side."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.layers = layers

    def __call__(self) -> Tensor:
        return torch.cat([layer.weight for layer in self.layers], dim=1)


def _rows(model: nn.Module, name: str) -> _Rows | None:
    """The rows of a classifier; None for a model that is none."""
    heads = [getattr(model, key, None) for key in ("classifier", "cls_classifier", "distillation_classifier")]
    try:
        layers = [Linear(head) for head in heads if isinstance(head, nn.Module) and type(head) is not nn.Identity]
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name} cannot be explained: {error}") from None
    return _Rows(layers) if layers else None


def _preprocess(processor: Any, view: ViTView, name: str) -> Preprocess:
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else processor.size
    if size is None:  # SigLIP 2 NaFlex: any size of about so many patches
        sides = [round(processor.max_num_patches**0.5) * processor.patch_size]
    else:
        found = [getattr(size, key, None) for key in ("height", "width", "shortest_edge")]
        sides = [side for side in found if side]
    if not sides:
        raise UnsupportedModelError(f"{name} cannot be explained: its processor does not say the size of its images")
    normalizes = getattr(processor, "do_normalize", True)
    bilinear = int(getattr(processor, "resample", 3) or 3) == 2
    return Preprocess(
        size=min(sides),
        patch_size=math.lcm(*view.patch_shape),
        mean=tuple(getattr(processor, "image_mean", None) or CLIP_MEAN) if normalizes else (0.0, 0.0, 0.0),
        std=tuple(getattr(processor, "image_std", None) or CLIP_STD) if normalizes else (1.0, 1.0, 1.0),
        resampling="bilinear" if bilinear else "bicubic",
        squash=not getattr(processor, "do_center_crop", False),
        image_size=view.image_size,
    )


@family("hf:NAME")
class HuggingFaceFamily(Family):
    """transformers' models, by their names on the hub or from folders."""

    def load(
        self, name: str, *, checkpoint: Source | None, device: torch.device, dtype: torch.dtype, towers: Sequence[str]
    ) -> HuggingFace:
        if checkpoint is not None:
            raise CheckpointError(f"hf:{name} takes no checkpoint; name its folder instead, as hf:FOLDER")
        return HuggingFace.from_pretrained(name, device=device, dtype=dtype)

    def names(self) -> list[str]:
        return [f"hf:{name}" for name in (*WITH_TEXTS, *CLASSIFIERS, *HEADLESS)]

    def entries(self) -> list[Entry]:
        from huggingface_hub import try_to_load_from_cache

        needs = "" if find_spec("transformers") else "needs `pip install avgrad[transformers]`; "
        lines = []
        for names, modalities in ((WITH_TEXTS, ("text",)), (CLASSIFIERS, ("class",)), (HEADLESS, ("image",))):
            for name in names:
                here = isinstance(try_to_load_from_cache(name, "config.json"), str)
                lines.append(Entry(f"hf:{name}", modalities, needs + ("here" if here else "fetched when first used")))
        return lines
