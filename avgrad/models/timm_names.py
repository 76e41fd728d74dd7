"""Which of timm's names can be explained, and why the others cannot. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import device, nn
from torch.overrides import TorchFunctionMode

from avgrad.errors import UnsupportedModelError

# The modules of timm that define single-scale vision transformers with global attention.
MODULES = (
    "vision_transformer",
    "deit",
    "eva",
    "beit",
    "vision_transformer_relpos",
    "vision_transformer_hybrid",
    "naflexvit",
    "vitamin",
)

_WINDOWS = "it attends within windows, so no attention matrix spans all patches"
_SCALES = "its stages are of several resolutions, so no single grid of patches runs through all blocks"
_CHANNELS = "its attention is between channels, not between patches"
_LINEAR = "its attention is linear: no attention matrix is computed"
_NO_ATTENTION = "it has no attention between patches"
_LANGUAGE = "it is the image encoder of a language model, whose parts are not known here"

# Why the transformers of timm's other modules have no single attention matrix over all patches.
REASONS = {
    "cait": "its talking heads mix the attention matrices of all heads",
    "coat": _LINEAR,
    "convit": "its attention matrices are gated mixtures of content and positions, which no block here computes",
    "crossvit": "its patches are of two scales, in two branches",
    "csatv2": _SCALES,
    "davit": _WINDOWS,
    "deepseek_vit": _LANGUAGE,
    "edgenext": _CHANNELS,
    "efficientformer": _SCALES,
    "efficientformer_v2": _SCALES,
    "efficientvim": _NO_ATTENTION,
    "efficientvit_mit": _LINEAR,
    "efficientvit_msra": _SCALES,
    "fastvit": _SCALES,
    "focalnet": _NO_ATTENTION,
    "gcvit": _WINDOWS,
    "gemma4_vit": _LANGUAGE,
    "hiera": _SCALES,
    "hieradet_sam2": _WINDOWS,
    "iformer": _SCALES,
    "levit": _SCALES,
    "lowformer": _SCALES,
    "mambaout": _NO_ATTENTION,
    "maxxvit": _WINDOWS,
    "metaformer": _SCALES,
    "mlp_mixer": _NO_ATTENTION,
    "mobilevit": _SCALES,
    "mvitv2": _SCALES,
    "nest": _WINDOWS,
    "nextvit": _SCALES,
    "pit": _SCALES,
    "pvt_v2": _SCALES,
    "qwen3_vit": _LANGUAGE,
    "sequencer": _NO_ATTENTION,
    "shvit": _SCALES,
    "swiftformer": _SCALES,
    "swin_transformer": _WINDOWS,
    "swin_transformer_v2": _WINDOWS,
    "swin_transformer_v2_cr": _WINDOWS,
    "tiny_vit": _WINDOWS,
    "tnt": "its patches hold tokens of their own, which attend within a patch",
    "twins": _WINDOWS,
    "vision_transformer_sam": _WINDOWS,
    "visformer": _SCALES,
    "volo": "its outlook attention spans the neighborhood of a patch only",
    "xcit": _CHANNELS,
}
_OTHER = "it is not a vision transformer"

# Parts of the names of models whose head is a projection into the embeddings of a CLIP-like model, unless they were
# fine-tuned on classes afterwards.
_PROJECTED = ("clip", "pe_core", "_mci_", "vitamin")


def module_of(architecture: str) -> str:
    """The last part of the name of timm's module that defines an architecture, such as "eva"."""
    import timm

    return str(timm.models.model_entrypoint(architecture).__module__).rpartition(".")[2]


class _Uninitialized(TorchFunctionMode):
    """Leaves out the initialization of weights, which takes most of the time and does nothing on the meta device."""

    SKIPPED = frozenset({"uniform_", "normal_", "erfinv_", "clamp_", "fill_", "zero_", "mul_", "div_", "add_", "sub_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.SKIPPED:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def shell(architecture: str, **options: Any) -> nn.Module:
    """One of timm's vision transformers without weights and with one block only: enough to tell whether the view can
    express it, in milliseconds.

    Args:
        architecture: of one of `MODULES`.
        **options: as `timm.create_model` takes them.
    """
    import timm

    model: nn.Module
    with device("meta"), _Uninitialized():
        try:
            model = timm.create_model(architecture, depth=1, **options)
        except AssertionError:  # an architecture that says something of each block is built with all of them
            model = timm.create_model(architecture, **options)
    return model


def refusal(architecture: str) -> str | None:
    """Why a model of timm cannot be explained; None if it can. Nothing is fetched.

    Args:
        architecture: timm's name, with or without the tag of its weights.
    """
    import timm

    bare, _, tag = architecture.partition(".")
    if not timm.is_model(bare):
        return f"timm has no model {bare!r}; one such as vit_base_patch16_224 is expected"
    tags = [full.partition(".")[2] for full in timm.list_models(f"{bare}.*", pretrained=True)]
    if tag and tag not in tags:
        return f"timm has no weights {tag!r} for {bare}; there are: {', '.join(tags) or 'none'}"
    reason = _reason(bare)
    return None if reason is None else f"timm:{architecture} cannot be explained: {reason}"


@cache
def _reason(architecture: str) -> str | None:
    """Why an architecture, a name without a tag, cannot be explained. Tags differ in weights and classifiers alone."""
    from avgrad.models.timm_view import trunk_view

    module = module_of(architecture)
    if module not in MODULES:
        return f"{REASONS.get(module, _OTHER)} (timm.models.{module})"
    try:
        trunk_view(shell(architecture), architecture)
    except UnsupportedModelError as error:
        return str(error).partition(": ")[2]
    return None


def refused() -> list[tuple[str, str]]:
    """The architectures of timm that cannot be explained, each with the reason, in the order of `timm.list_models`."""
    import timm

    reasons = [(name, _reason(name)) for name in timm.list_models()]
    return [(name, reason) for name, reason in reasons if reason is not None]


def pretrained() -> dict[str, dict[str, bool]]:
    """timm's pretrained models that can be explained.

    Returns:
        For each architecture its tags, each with whether its weights are in the cache.
    """
    import timm

    models: dict[str, dict[str, bool]] = {}
    for full in timm.list_models(pretrained=True):
        architecture, _, tag = full.partition(".")
        config = timm.get_pretrained_cfg(full)
        if config is not None and _reason(architecture) is None:
            models.setdefault(architecture, {})[tag] = _is_cached(config)
    return models


def is_projection(config: Mapping[str, Any], width: int) -> bool:
    """Whether a model's head is the projection of a CLIP-like model: by timm's name of its weights, as long as the head
    is as wide as these say and its outputs are not the classes of a known subset of ImageNet.

    Args:
        config: timm's configuration of the weights.
        width: of the head.
    """
    from timm.data.imagenet_info import infer_imagenet_subset

    known = any(part in f"{config.get('architecture', '')}_" for part in _PROJECTED)
    return known and width == config.get("num_classes") and infer_imagenet_subset({"num_classes": width}) is None


def has_classes(full: str) -> bool:
    """Whether weights, named with their tag, come with a classifier."""
    import timm

    config = timm.get_pretrained_cfg(full)
    if config is None or not config.num_classes:
        return False
    return not is_projection(config.to_dict(), config.num_classes)


def _is_cached(config: Any) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from torch.hub import get_dir

    if config.hf_hub_id:
        files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        if any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
            return True
    return bool(config.url) and (Path(get_dir()) / "checkpoints" / Path(config.url).name).is_file()
