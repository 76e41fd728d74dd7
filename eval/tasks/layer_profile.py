"""Layer profile: a model's gradient inside object masks, layer by layer (Figure 6 of the LeGrad paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import avgrad
from avgrad.encoders.text import check_templates
from avgrad.scenes import CLASSES
from avgrad.scenes.images import MAX_OBJECTS
from eval.encoder import Encoder
from eval.store import Measures
from eval.task import Array, Case, DataError, Inputs, Item, Modality, Resampler, Row, Task, task
from eval.tasks.ade20k import Ade20k, Ade20kItem, Ade20kSound, Ade20kSpeech
from eval.tasks.scenes import PROMPTS, Scenes

ALL = "all classes"
SHOWN = 8  # most frequent classes in the plot
NUM_SCENES = 100  # by default
METHOD = "legrad"


class _LargeScenes(Scenes):
    side = 256


@task("layer-profile")
class LayerProfile(Task):
    """LeGrad's raw map of each layer, averaged inside each object's mask.

    The means are averaged over the objects of each class, and over classes, and min-max normalized over the layers.

    Args:
        root: a folder in the layout of ade20k-sound or ade20k-speech; None for synthetic scenes.
        limit: number of rows of the data, or of scenes (100).
        prompt: "text" (class names), "sound" or "speech".
        rows: rows of the data with text prompts, "sound" or "speech".
        template: for class names of the data, with {} for the name.
        seed: of scenes and prompts.

    Raises:
        DataError: as the other benchmarks do, or an option is unknown.
    """

    measures = "over which layers LeGrad's gradient inside object masks is spread"
    source = "synthetic scenes, or the data of ade20k-sound and ade20k-speech"
    layout = "none, or that of ade20k-sound and ade20k-speech"
    modalities: tuple[Modality, ...] = ("audio", "text")
    needs_data = False
    options: ClassVar[Mapping[str, str | int]] = {
        "prompt": "text",
        "rows": "sound",
        "template": "a photo of a {}",
        "seed": 1,
    }
    default_methods = ()
    columns: ClassVar[Mapping[str, str]] = {"normalized": "mean gradient, min-max normalized"}
    ranked = False
    curve_axes = ("layer", "mean gradient, min-max normalized")
    items: Sequence[Item]

    def __init__(
        self,
        root: str | Path | None = None,
        limit: int | None = None,
        prompt: str = "text",
        rows: str = "sound",
        template: str = "a photo of a {}",
        seed: int = 1,
    ) -> None:
        if prompt not in PROMPTS or rows not in ("sound", "speech"):
            raise DataError(
                f"prompt={prompt!r}, rows={rows!r}; a prompt of text, sound or speech and rows of sound or speech are "
                "expected"
            )
        (self.template,) = check_templates(template)
        self.by_text = prompt == "text"
        self.modalities = (PROMPTS[prompt],)
        self.chosen = {"prompt": prompt, "rows": rows, "template": template, "seed": seed}
        self.inner: Scenes | Ade20k
        if root is None:
            self.inner = _LargeScenes(None, limit or NUM_SCENES, seed, prompt)
        else:
            kind = Ade20kSpeech if (rows if self.by_text else prompt) == "speech" else Ade20kSound
            self.inner = kind(root, limit)
        self.items, self.problems, self.num_rows = self.inner.items, self.inner.problems, self.inner.num_rows
        self.fingerprint = self.inner.fingerprint

    def load(self, item: Item, inputs: Inputs) -> Case:
        """Load an item of the scenes or the data; its truth are the masks `[n, H, W]` and classes `[n]` of objects."""
        if isinstance(self.inner, Scenes):
            return self.inner.load(item, inputs)  # type: ignore[arg-type]
        assert isinstance(item, Ade20kItem)
        case = self.inner.load(item, inputs)
        name = self.template.replace("{}", item.class_name)
        truth = {"masks": case.truth["mask"][None], "classes": np.array([item.class_id])}
        return replace(case, prompts=[name] if self.by_text else case.prompts[:1], truth=truth)

    def probe(self, case: Case, maps: Mapping[str, Array], embeddings: Tensor, encoder: Encoder) -> Mapping[str, Array]:
        """The class of each object `[4]`, -1 for none, and the mean gradient inside its mask `[4, L]`, NaN for none."""
        view = encoder.model.vision
        pixels = case.pixels[None].to(embeddings.device)
        layers = avgrad.attribute(view, pixels, embeddings[None], METHOD, per_layer=True)[0].cpu()
        classes = np.full(MAX_OBJECTS, -1)
        profile = np.full((MAX_OBJECTS, layers.shape[1]), np.nan)
        for place, (own, mask) in enumerate(zip(layers, torch.from_numpy(case.truth["masks"]), strict=True)):
            if mask.any():
                classes[place], profile[place] = case.truth["classes"][place], inside(own, mask).numpy()
        return {"classes": classes, "profile": profile}

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each layer, with the classes as its details."""
        sums, counts = cls._sums(measures)
        if not counts.any():
            raise DataError("all masks are empty in the evaluated part of the images; masks of objects are expected")
        names, objects = cls._names(measures), counts.sum(0)
        means = sums.sum(0) / objects[:, None]
        profiles = {ALL: means.mean(0), **dict(zip(names, means, strict=True))}
        numbers = {ALL: int(objects.sum()), **dict(zip(names, objects.astype(int).tolist(), strict=True))}
        return [
            Row(
                METHOD,
                {"layer": str(layer)},
                {"normalized": float(normalized(profiles[ALL])[layer]), "mean_gradient": float(profiles[ALL][layer])},
                details=[
                    {
                        "class_name": name,
                        "objects": numbers[name],
                        "normalized": float(normalized(own)[layer]),
                        "mean_gradient": float(own[layer]),
                    }
                    for name, own in profiles.items()
                ],
            )
            for layer in range(means.shape[1])
        ]

    @classmethod
    def _classes(cls, measures: Measures) -> list[int]:
        """The numbers of the classes that have objects, ascending."""
        found = {int(number) for part in measures.stream("classes") for number in np.unique(part)}
        return sorted(found - {-1})

    @classmethod
    def _names(cls, measures: Measures) -> list[str]:
        """The names of the classes of `_classes`."""
        numbers = cls._classes(measures)
        if "class_id" not in measures.items[0]:
            return [CLASSES[number].name for number in numbers]
        names = {int(item["class_id"]): str(item["class_name"]) for item in measures.items}
        return [names[number] for number in numbers]

    @classmethod
    def _sums(cls, measures: Measures) -> tuple[Array, Array]:
        """Sums of profiles `[groups, C, L]` and numbers of objects `[groups, C]` of each image and class."""
        numbers, (groups, first) = cls._classes(measures), measures.groups("image")
        length = measures.take("profile", np.array([0])).shape[-1]
        sums, counts = np.zeros((len(first), len(numbers), length)), np.zeros((len(first), len(numbers)))
        start = 0
        for classes, profiles in zip(measures.stream("classes"), measures.stream("profile"), strict=True):
            items, places = np.nonzero(classes >= 0)
            where = groups[start + items], np.searchsorted(numbers, classes[items, places])
            np.add.at(sums, where, profiles[items, places])
            np.add.at(counts, where, 1)
            start += len(classes)
        return sums, counts

    @classmethod
    def methods_of(cls, measures: Measures) -> list[str]:
        """LeGrad alone."""
        return [METHOD]

    @classmethod
    def curves(cls, rows: Sequence[Row]) -> Mapping[str, Mapping[str, Array]]:
        """The profile of all classes and of the most frequent ones."""
        objects = {part["class_name"]: part["objects"] for part in rows[0].details}
        names = sorted(objects, key=lambda name: (-objects[name], name))[: SHOWN + 1]  # ALL has the most objects
        places = {part["class_name"]: place for place, part in enumerate(rows[0].details)}
        layers = np.arange(len(rows))
        return {
            METHOD: {
                f"{name} ({objects[name]})": np.stack(
                    [layers, [row.details[places[name]]["normalized"] for row in rows]]
                )
                for name in names
            }
        }

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """The profile over images drawn anew."""
        sums, counts = cls._sums(measures)
        layer = int(row.variant["layer"])

        def figures(weights: Array) -> dict[str, Array]:
            drawn = weights @ counts
            total = np.einsum("ri,icl->rcl", weights, sums)
            means = np.divide(total, drawn[..., None], out=np.zeros_like(total), where=drawn[..., None] > 0)
            mean = means.sum(1) / np.maximum((drawn > 0).sum(1), 1)[:, None]
            return {"normalized": np.stack([normalized(own)[layer] for own in mean])}

        return figures


def inside(maps: Tensor, mask: Tensor) -> Tensor:
    """The mean of maps `[L, gh, gw]` inside a mask `[H, W]` that is not empty, `[L]`.

    Each patch is weighted by the share of it that the mask covers.
    """
    share = F.adaptive_avg_pool2d(mask[None].to(maps), (maps.shape[-2], maps.shape[-1]))
    return (maps * share).sum((-2, -1)) / share.sum()


def normalized(profile: Array) -> Array:
    """A profile `[L]`, min-max normalized over the layers; 0 if it is constant."""
    low, high = profile.min(), profile.max()
    return (profile - low) / max(high - low, np.finfo(np.float64).tiny)
