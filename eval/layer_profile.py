"""Layer profile: a model's gradient inside object masks, layer by layer (Figure 6 of the LeGrad paper).

    python -m eval.layer_profile --model mini --out RUN                             on synthetic scenes
    python -m eval.layer_profile --model mini --data ROOT --prompt sound --out RUN  on masks in the layout of ADE20K
    python -m eval.layer_profile --model open_clip:ViT-B-16/openai --model open_clip:ViT-L-14/openai ...

LeGrad's raw map of each layer is averaged inside each object's mask; the means are averaged over the objects of each
class, and over classes, and min-max normalized over the layers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from tqdm import tqdm

import avgrad
from avgrad.encoders.text import encode_labels
from avgrad.engine.view import ViTView
from avgrad.errors import InputError, UnsupportedModelError
from avgrad.files import write_atomic
from eval.task import DataError, Inputs
from eval.tasks.ade20k import Ade20k, Ade20kSound, Ade20kSpeech

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all classes"
SHOWN = 8  # most frequent classes in the plot


class ObjectInScene(NamedTuple):
    """An object in an image.

    Attributes:
        class_name: its class.
        pixels: the preprocessed image, `[3, h, w]`.
        prompt: embedding of the prompt, `[D]`.
        mask: its pixels, bool `[H, W]`, over the same part of the image.
    """

    class_name: str
    pixels: Tensor
    prompt: Tensor
    mask: Tensor


class LayerProfile(NamedTuple):
    """Number of objects of a class, and the mean gradient inside their masks per layer, `[L]`."""

    objects: int
    mean: Tensor

    @property
    def normalized(self) -> Tensor:
        """The mean, min-max normalized over the layers; 0 if it is constant."""
        low, high = self.mean.min(), self.mean.max()
        return (self.mean - low) / (high - low).clamp_min(torch.finfo(self.mean.dtype).tiny)


def inside(maps: Tensor, mask: Tensor) -> Tensor | None:
    """The mean of maps `[L, gh, gw]` inside a mask `[H, W]`, `[L]`; None if the mask is empty.

    Each patch is weighted by the share of it that the mask covers.
    """
    share = F.adaptive_avg_pool2d(mask[None].to(maps), (maps.shape[-2], maps.shape[-1]))
    return (maps * share).sum((-2, -1)) / share.sum() if mask.any() else None


def layer_profiles(view: ViTView, objects: Iterator[ObjectInScene]) -> dict[str, LayerProfile]:
    """The profile of each class by name, after that of `ALL`.

    Args:
        view: the model.
        objects: those with an empty mask are left out.

    Raises:
        DataError: all masks are empty.
    """
    found: dict[str, list[Tensor]] = {}
    for obj in objects:
        maps = avgrad.attribute(view, obj.pixels[None], obj.prompt[None], per_layer=True)[0, 0]
        mean = inside(maps.cpu(), obj.mask)
        if mean is not None:
            found.setdefault(obj.class_name, []).append(mean)
    if not found:
        raise DataError("all masks are empty in the evaluated part of the images; masks of objects are expected")
    classes = {name: LayerProfile(len(means), torch.stack(means).mean(0)) for name, means in sorted(found.items())}
    every = torch.stack([profile.mean for profile in classes.values()]).mean(0)
    return {ALL: LayerProfile(sum(profile.objects for profile in classes.values()), every), **classes}


def objects_in_scenes(model: Any, number: int, seed: int, prompt: str) -> Iterator[ObjectInScene]:
    """The objects of held-out synthetic scenes, with the prompts of `eval.scenes`."""
    from PIL import Image

    from avgrad.scenes import CLASSES, draw_scene, scene_rng
    from eval.scenes import encode_prompts

    scenes = [draw_scene(scene_rng("evaluation", seed, index), 256) for index in range(number)]
    prompts = iter(
        encode_prompts(model, prompt, [object_class for scene in scenes for object_class in scene.classes], seed)
    )
    for scene in tqdm(scenes, desc="scenes"):
        pixels = model.preprocess.whole(Image.fromarray(scene.image))
        for object_class, mask in zip(scene.classes, scene.masks, strict=True):
            yield ObjectInScene(CLASSES[object_class].name, pixels, next(prompts), torch.from_numpy(mask))


def objects_in_data(model: Any, data: Ade20k, by_text: bool, template: str) -> Iterator[ObjectInScene]:
    """The objects of a data set, with prompts from their class names or from its sounds."""
    for item in tqdm(data.items, desc=data.name):
        case = data.load(item, Inputs.of(model))
        if by_text:
            prompt = encode_labels(model, [item.class_name], [template])[0]
        else:
            prompt = model.encode_audio([case.prompts[0]])[0]
        yield ObjectInScene(item.class_name, case.pixels, prompt, torch.from_numpy(case.truth["mask"]))


def table(models: dict[str, dict[str, LayerProfile]]) -> str:
    """CSV: a row for each model, class and layer."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "class", "objects", "layer", "mean_gradient", "min_max"])
    for model, classes in models.items():
        for name, profile in classes.items():
            for layer, (mean, normalized) in enumerate(zip(profile.mean, profile.normalized, strict=True)):
                writer.writerow([model, name, profile.objects, layer, f"{mean:.6g}", f"{normalized:.6f}"])
    return text.getvalue()


def plot(models: dict[str, dict[str, LayerProfile]]) -> Figure:
    """A panel for each model: all classes in bold, the most frequent ones thin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(models), 3.6), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, (model, classes) in zip(panels, models.items(), strict=True):
        names = sorted(classes, key=lambda name: (-classes[name].objects, name))[
            : SHOWN + 1
        ]  # ALL has the most objects
        for name in reversed(names):
            bold = name == ALL
            line = {"color": "black", "linewidth": 2.5, "marker": "o"} if bold else {"linewidth": 1, "alpha": 0.8}
            panel.plot(classes[name].normalized, label=f"{name} ({classes[name].objects})", **line)
        panel.set(title=model, xlabel="layer", ylim=(-0.03, 1.03))
        panel.legend(fontsize="x-small")
    panels[0].set_ylabel("mean gradient inside masks, min-max normalized")
    return figure


def main(
    out: Annotated[Path, typer.Option(help="Folder for layer_profile.csv and layer_profile.png.")],
    model: Annotated[list[str] | None, typer.Option(help="Name for avgrad.load; repeatable. Default: mini.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File with the weights, for a single model.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with prompted_segmentation.csv. Default: synthetic scenes.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="text (class names), sound or speech.")] = "text",
    rows: Annotated[str, typer.Option(help="Rows of the data with text prompts: sound or speech.")] = "sound",
    template: Annotated[str, typer.Option(help="Template for class names of the data.")] = "a photo of a {}",
    n: Annotated[int | None, typer.Option(help="Number of rows of the data, or of scenes (100).", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the scenes and prompts.", min=0)] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
) -> None:
    """Writes the layer profile of each model and class as a table and a plot."""
    names = model or ["mini"]
    if prompt not in ("text", "sound", "speech"):
        raise typer.BadParameter(f"{prompt!r} is unknown; expected text, sound or speech", param_hint="--prompt")
    if checkpoint and len(names) > 1:
        raise typer.BadParameter("a checkpoint needs a single --model", param_hint="--checkpoint")
    modality = prompt if prompt != "text" else rows
    if modality not in ("sound", "speech"):
        raise typer.BadParameter(f"{rows!r} is unknown; expected sound or speech", param_hint="--rows")
    try:
        found = {}
        kind = Ade20kSound if modality == "sound" else Ade20kSpeech
        dataset = None if data is None else kind(data, n)
        for name in names:
            towers = ("vision", "text") if prompt == "text" else ("vision", "audio")
            loaded: Any = avgrad.load(name, checkpoint=checkpoint, device=device, towers=towers)
            needed = towers[1]
            if needed not in loaded.modalities:
                raise UnsupportedModelError(
                    f"{name} has no {needed} encoder; it takes {', '.join(loaded.modalities)} prompts"
                )
            objects = (
                objects_in_scenes(loaded, n or 100, seed, prompt)
                if dataset is None
                else objects_in_data(loaded, dataset, prompt == "text", template)
            )
            found[name] = layer_profiles(loaded.vision, objects)
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    image = io.BytesIO()
    plot(found).savefig(image, format="png", dpi=150)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "layer_profile.csv", table(found).encode())
    write_atomic(out / "layer_profile.png", image.getvalue())
    for name, classes in found.items():
        layers = " ".join(f"{value:.2f}" for value in classes[ALL].normalized)
        print(f"{name}: {classes[ALL].objects} objects of {len(classes) - 1} classes; by layer: {layers}")


if __name__ == "__main__":
    typer.run(main)
