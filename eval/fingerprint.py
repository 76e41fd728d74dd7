"""Which layers see an object? The LeGrad paper's Figure 6: a model's gradient inside masks, layer by layer.

    python -m eval.fingerprint --model mini --out RUN                             on synthetic scenes
    python -m eval.fingerprint --model mini --data ROOT --prompt sound --out RUN  on masks in the layout of ADE20K
    python -m eval.fingerprint --model open_clip:ViT-B-16/openai --model open_clip:ViT-L-14/openai ...

For each object LeGrad's raw map of each layer is averaged inside its mask; these are averaged over objects, for each
class and for all classes (each class counting the same), and stretched over the layers, min-max, to [0, 1].
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
from avgrad.errors import CheckpointError, UnsupportedModelError
from avgrad.files import write_atomic
from eval.ade20k_data import Ade20k
from eval.dataset import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all classes"
SHOWN = 8  # classes in the plot, the most frequent ones


class ObjectInScene(NamedTuple):
    """An object in an image.

    Attributes:
        class_name: what it is.
        pixels: the image as the model takes it, `[3, h, w]`.
        prompt: its embedding, `[D]`.
        mask: where it is, bool `[H, W]`, of the same part of the image.
    """

    class_name: str
    pixels: Tensor
    prompt: Tensor
    mask: Tensor


class Fingerprint(NamedTuple):
    """Of a class: number of objects, and the mean gradient inside their masks for each layer, `[L]`."""

    objects: int
    mean: Tensor

    @property
    def stretched(self) -> Tensor:
        """The mean, stretched over the layers to [0, 1]; all 0 where it is the same in all."""
        low, high = self.mean.min(), self.mean.max()
        return (self.mean - low) / (high - low).clamp_min(torch.finfo(self.mean.dtype).tiny)


def inside(maps: Tensor, mask: Tensor) -> Tensor | None:
    """The mean of maps `[L, gh, gw]` inside a mask `[H, W]`, `[L]`; None where the mask is empty.

    A patch counts as much as the part of it that the mask covers.
    """
    share = F.adaptive_avg_pool2d(mask[None].to(maps), (maps.shape[-2], maps.shape[-1]))
    return (maps * share).sum((-2, -1)) / share.sum() if mask.any() else None


def fingerprints(view: ViTView, objects: Iterator[ObjectInScene]) -> dict[str, Fingerprint]:
    """The fingerprint of each class, by name, after that of `ALL`.

    Args:
        view: the model.
        objects: in masks of which gradients are averaged; those with an empty mask are left out.

    Raises:
        DataError: there is nothing with a mask.
    """
    found: dict[str, list[Tensor]] = {}
    for obj in objects:
        maps = avgrad.attribute(view, obj.pixels[None], obj.prompt[None], per_layer=True)[0, 0]
        mean = inside(maps.cpu(), obj.mask)
        if mean is not None:
            found.setdefault(obj.class_name, []).append(mean)
    if not found:
        raise DataError("no mask has a pixel in the part of its image that models see; masks of objects are expected")
    classes = {name: Fingerprint(len(means), torch.stack(means).mean(0)) for name, means in sorted(found.items())}
    every = torch.stack([fingerprint.mean for fingerprint in classes.values()]).mean(0)
    return {ALL: Fingerprint(sum(f.objects for f in classes.values()), every), **classes}


def objects_in_scenes(model: Any, number: int, seed: int, prompt: str) -> Iterator[ObjectInScene]:
    """The objects of synthetic scenes that training never draws; prompts as `eval.scenes` draws them."""
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
    """The objects of a data set; by their class names, or by its sounds."""
    for item in tqdm(data.items, desc=data.name):
        sample = data.load(item, model.preprocess)
        if by_text:
            prompt = encode_labels(model, [item.class_name], [template])[0]
        else:
            prompt = model.encode_clips(sample.clips[0])
        yield ObjectInScene(item.class_name, sample.pixels, prompt, sample.mask)


def table(models: dict[str, dict[str, Fingerprint]]) -> str:
    """CSV: a line for each model, class and layer."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "class", "objects", "layer", "mean_gradient", "min_max"])
    for model, classes in models.items():
        for name, fingerprint in classes.items():
            for layer, (mean, stretched) in enumerate(zip(fingerprint.mean, fingerprint.stretched, strict=True)):
                writer.writerow([model, name, fingerprint.objects, layer, f"{mean:.6g}", f"{stretched:.6f}"])
    return text.getvalue()


def plot(models: dict[str, dict[str, Fingerprint]]) -> Figure:
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
            panel.plot(classes[name].stretched, label=f"{name} ({classes[name].objects})", **line)
        panel.set(title=model, xlabel="layer", ylim=(-0.03, 1.03))
        panel.legend(fontsize="x-small")
    panels[0].set_ylabel("mean gradient inside masks, min-max")
    return figure


def main(
    out: Annotated[Path, typer.Option(help="Folder for fingerprint.csv and fingerprint.png.")],
    model: Annotated[list[str] | None, typer.Option(help="A name for avgrad.load; several. Default: mini.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File with the weights, for a single model.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with prompted_segmentation.csv. Default: synthetic scenes.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="text: names of classes; sound or speech: those of the data.")] = "text",
    rows: Annotated[str, typer.Option(help="Which rows of the data are taken: sound or speech.")] = "sound",
    template: Annotated[str, typer.Option(help="Text around a class's name in the data.")] = "a photo of a {}",
    n: Annotated[int | None, typer.Option(help="Only so many rows of the data, or scenes (100).", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the scenes and prompts.", min=0)] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
) -> None:
    """Writes which layers' gradients are inside the masks, for each model and class, as a table and a plot."""
    names = model or ["mini"]
    if prompt not in ("text", "sound", "speech"):
        raise typer.BadParameter(f"{prompt!r} is none of text, sound and speech", param_hint="--prompt")
    if checkpoint and len(names) > 1:
        raise typer.BadParameter("it belongs to one model; give a single --model", param_hint="--checkpoint")
    modality = prompt if prompt != "text" else rows
    if modality not in ("sound", "speech"):
        raise typer.BadParameter(f"{rows!r} is neither sound nor speech", param_hint="--rows")
    try:
        found = {}
        dataset = None if data is None else Ade20k(data, modality, n)  # type: ignore[arg-type]
        for name in names:
            towers = ("vision", "text") if prompt == "text" else ("vision", "audio")
            loaded: Any = avgrad.load(name, checkpoint=checkpoint, device=device, towers=towers)
            needed = towers[1]
            if needed not in loaded.modalities:
                raise DataError(f"{name} understands no {needed}; one of {', '.join(loaded.modalities)} is expected")
            objects = (
                objects_in_scenes(loaded, n or 100, seed, prompt)
                if dataset is None
                else objects_in_data(loaded, dataset, prompt == "text", template)
            )
            found[name] = fingerprints(loaded.vision, objects)
    except (DataError, CheckpointError, UnsupportedModelError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    image = io.BytesIO()
    plot(found).savefig(image, format="png", dpi=150)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "fingerprint.csv", table(found).encode())
    write_atomic(out / "fingerprint.png", image.getvalue())
    for name, classes in found.items():
        layers = " ".join(f"{value:.2f}" for value in classes[ALL].stretched)
        print(f"{name}: {classes[ALL].objects} objects of {len(classes) - 1} classes; by layer: {layers}")


if __name__ == "__main__":
    typer.run(main)
