"""Synthetic scenes: `python -m eval.scenes` evaluates a model on held-out scenes, by default the bundled one.

Prompted segmentation with min-max normalized heatmaps, for sounds, held-out voices and texts; the ROC-AUC of scores of
present against absent objects; and a baseline that ignores image and prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from tqdm import tqdm

import avgrad
from avgrad.encoders.audio import SAMPLE_RATE
from avgrad.errors import InputError, UnsupportedModelError
from avgrad.files import write_atomic
from avgrad.media import open_audio
from avgrad.models.imagebind import ImageBind
from avgrad.scenes import CLASSES, draw_scene, mix_sound, scene_rng, spoken, texts
from eval.metrics.prompted_segmentation import prompted_segmentation
from eval.report import markdown

BATCH = 25
ROWS: dict[str, dict[str, Any]] = {
    "legrad": {},
    "legrad (cls)": {"pooling": "cls"},
    "legrad (no ReLU)": {"relu": False},
    "legrad_last": {},
    "raw_attention": {},
    "rollout": {},
    "gradcam": {},
    "gradcam (patches)": {"class_token": False},
    "gradcam (every layer)": {"every_layer": True},
    "attentioncam": {},
    "attentioncam (whole matrix)": {"whole_matrix": True},
    "chefercam": {},
    "lrp": {},
    "lrp_conserving": {},
    "partial_lrp": {},
    "partial_lrp_conserving": {},
    "transformer_attribution": {},
    "textspan": {},
    "grad_eclip": {},
    "cosine": {},
}
"""Rows of the table: a method, its variant in brackets, and that variant's arguments of `avgrad.attribute`."""


def central_blob(size: int) -> Tensor:
    """A baseline that ignores the image: a Gaussian in its center, `[size, size]`, in (0, 1]."""
    axis = torch.linspace(-1, 1, size)
    return torch.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 0.4**2))


def encode_prompts(model: ImageBind, modality: str, classes: list[int], seed: int) -> Tensor:
    """One held-out prompt for each object, unit-norm `[objects, D]`."""
    prompts = []
    for index, object_class in enumerate(tqdm(classes, desc=f"{modality} prompts", leave=False)):
        rng = scene_rng(f"evaluation {modality}", seed, index)
        if modality == "text":
            choices = texts(object_class, "heldout")
            prompts.append(model.encode_text([choices[int(rng.integers(len(choices)))]])[0])
            continue
        if modality == "sound":
            others = [k for k in rng.permutation(len(CLASSES)).tolist() if k != object_class][: int(rng.integers(0, 3))]
            waveform = mix_sound(object_class, rng, float(rng.uniform(3, 6)), others, SAMPLE_RATE)
        else:
            waveform = spoken(object_class, rng, "heldout").waveform
        prompts.append(model.encode_sound(open_audio((waveform, SAMPLE_RATE))))
    return torch.stack(prompts)


def evaluate(model: ImageBind, number: int, seed: int, size: int, rows: Sequence[str] = tuple(ROWS)) -> dict[str, Any]:
    """All figures of `number` scenes of `size` pixels; for speech and text, of the first of `rows` only."""
    scenes = [draw_scene(scene_rng("evaluation", seed, index), size) for index in tqdm(range(number), desc="scenes")]
    from PIL import Image

    pixels = torch.stack([model.preprocess.whole(Image.fromarray(scene.image)) for scene in scenes])
    images = torch.cat([model.encode_image(part) for part in pixels.split(BATCH)])
    classes = [object_class for scene in scenes for object_class in scene.classes]
    owners = torch.tensor([index for index, scene in enumerate(scenes) for _ in scene.classes])
    places = torch.tensor([place for scene in scenes for place in range(len(scene.classes))])
    masks = torch.from_numpy(np.concatenate([scene.masks for scene in scenes]))
    class_ids = torch.tensor([CLASSES[object_class].ade_class_id for object_class in classes])
    present = torch.zeros(number, len(CLASSES), dtype=torch.bool)
    present[owners, torch.tensor(classes)] = True
    figures: dict[str, Any] = {
        "scenes": number,
        "objects": len(classes),
        "mean_area": float(masks.float().mean()),
        "central_blob": _figures(central_blob(size).expand(len(classes), -1, -1), masks, class_ids),
    }
    for modality in ("sound", "speech", "text"):
        embeddings = encode_prompts(model, modality, classes, seed)
        prompts = torch.zeros(number, 4, embeddings.shape[-1])
        prompts[owners, places] = embeddings
        figures[modality] = {"roc_auc": float(binary_auroc(images @ embeddings.T, present[:, classes]))}
        chosen = rows if modality == "sound" else rows[:1]
        for row in tqdm(chosen, desc=f"methods, {modality}", leave=False):
            heatmaps, start = [], time.perf_counter()
            for part, own in zip(pixels.split(BATCH), prompts.split(BATCH), strict=True):
                maps = avgrad.attribute(model.vision, part, own, row.split()[0], normalize=False, **ROWS[row])
                heatmaps.append(maps)
            seconds = time.perf_counter() - start
            every = torch.cat(heatmaps)[owners, places]
            every = torch.nn.functional.interpolate(every[:, None], size=(size, size), mode="bilinear")
            figures[modality][row] = _figures(avgrad.engine.attribute.min_max(every[:, 0]), masks, class_ids)
            figures[modality][row]["ms_per_image"] = round(1000 * seconds / number, 2)
    return figures


def _figures(heatmaps: Tensor, masks: Tensor, class_ids: Tensor) -> dict[str, float]:
    score = prompted_segmentation(heatmaps, masks, class_ids)
    return {"mIoU": score.mean_iou, "mAP": score.mean_average_precision}


def main(
    model: Annotated[str, typer.Option(help="Name of an ImageBind model.")] = "mini",
    checkpoint: Annotated[Path | None, typer.Option(help="File with its weights.")] = None,
    n: Annotated[int, typer.Option(help="Number of scenes.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the scenes and prompts, which training never uses.")] = 1,
    size: Annotated[int, typer.Option(help="Image size in pixels.")] = 128,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    methods: Annotated[
        str, typer.Option(help=f"Rows of the table, comma-separated: {', '.join(ROWS)}. Default: all.")
    ] = "",
) -> None:
    """Prints how well a model localizes objects in synthetic scenes."""
    rows = tuple(dict.fromkeys(row.strip() for row in methods.split(","))) if methods else tuple(ROWS)
    for row in rows:
        if row not in ROWS:
            raise typer.BadParameter(f"{row!r} is unknown; expected some of {', '.join(ROWS)}", param_hint="--methods")
    try:
        loaded = avgrad.load(model, checkpoint=checkpoint)
        if not isinstance(loaded, ImageBind):
            raise UnsupportedModelError(f"{model} has no audio encoder; an ImageBind model is expected")
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    figures = evaluate(loaded, n, seed, size, rows)
    area = f"{figures['mean_area']:.1%}"
    print(f"\n{n} scenes, {figures['objects']} objects, covering {area} of the image each on average\n")
    lines = []
    for modality in ("sound", "speech", "text"):
        auc = f"{figures[modality]['roc_auc']:.4f}"
        for row, values in figures[modality].items():
            if isinstance(values, dict):
                cells = (f"{values['mIoU']:.3f}", f"{values['mAP']:.3f}", f"{values['ms_per_image']:.1f}")
                lines.append((modality, row, *cells, auc if row == rows[0] else ""))
    blob = figures["central_blob"]
    lines.append(("none", "central blob", f"{blob['mIoU']:.3f}", f"{blob['mAP']:.3f}", "", ""))
    print(markdown(("prompt", "method", "mIoU", "mAP", "ms per image", "ROC-AUC of scores"), lines))
    if out:
        write_atomic(out, (json.dumps(figures, indent=2) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
