"""Trains avgrad-mini on synthetic scenes: `python -m training.train --out RUN`.

Supervision is image-level: labels say which classes are in an image, never where. As in ImageBind, each sound, spoken
name and text is pulled towards the images that contain its object, and pushed away from the others. Before that, the
towers are trained separately on the classes, which is much faster.

Each step uses a random subset of each image's patches. This saves time, and the vision tower cannot rely on the most
discriminative part of an object, so that heatmaps cover all of it.
"""

from __future__ import annotations

import json
import math
import os
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from avgrad.encoders.image import CLIP_MEAN, CLIP_STD
from avgrad.encoders.text import tokenize
from avgrad.files import write_atomic
from avgrad.models.imagebind import ImageBind
from avgrad.models.towers import ImageBindConfig
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.texts import texts
from training.held_out import HeldOut
from training.pool import Part, make_pool

SHAPE: dict[str, Any] = {
    "kernel_size": (2, 8, 8),
    "image_size": 128,
    "out_embed_dim": 128,
    "vision_embed_dim": 192,
    "vision_num_blocks": 6,
    "vision_num_heads": 3,
    "audio_embed_dim": 128,
    "audio_num_blocks": 4,
    "audio_num_heads": 2,
    "audio_kernel_size": 16,
    "audio_stride": 16,
    "text_embed_dim": 128,
    "text_num_blocks": 2,
    "text_num_heads": 2,
    "text_context_length": 24,
}
CLOSE_UP_SIZE = SHAPE["image_size"] * 3 // 8
PROMPTS_PER_CLASS = {"audio": {"sounds": 2, "speech": 6}, "joint": {"sounds": 2, "speech": 2}}
TEXTS_PER_CLASS = 2


class Stage(str, Enum):
    """Vision (with text) and audio are trained separately against the classes' anchors, then all towers jointly."""

    vision = "vision"
    audio = "audio"
    joint = "joint"


def vocabulary() -> list[int]:
    """Ascending CLIP token ids of all texts of the scenes, special tokens included."""
    every = [
        text
        for split in ("train", "heldout")
        for object_class in range(len(CLASSES))
        for text in texts(object_class, split)
    ]
    return sorted(set(tokenize(every, SHAPE["text_context_length"]).flatten().tolist()) | {0})


class Trainer(nn.Module):
    """The model with an anchor for each class, and the scale and bias of the logits.

    Anchors are fixed orthogonal directions, one per class. Towers trained against them separately share one space.
    `sigmoid(scale * similarity + bias)` is the probability that the object is in the image.
    """

    anchors: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        words = vocabulary()
        config = ImageBindConfig(**SHAPE, text_vocab_size=len(words))
        self.model = ImageBind(config, name="mini", vocabulary=words)
        generator = torch.Generator().manual_seed(seed)
        self.model.initialize(generator)
        self.model.modality_postprocessors.requires_grad_(False)
        directions = torch.randn(SHAPE["out_embed_dim"], len(CLASSES), generator=generator)
        self.register_buffer("anchors", torch.linalg.qr(directions).Q.T.contiguous())
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch.

        Sigmoid loss over all pairs of images and anchors and of images and prompts (is the object in the image?);
        cross-entropy of prompts against anchors (which class is it?). Modalities that the batch lacks are left out.
        """
        scale, losses = self.log_scale.exp(), []
        images = None
        if "pixels" in batch:
            images = self._encode(batch["pixels"], batch["kept"]).float()
            losses.append(self._pairs(images, self.anchors, batch["labels"]))
        for modality, tower in (("sounds", "audio"), ("speech", "audio"), ("texts", "text")):
            if modality in batch:
                prompts, classes = self.model.tower(tower, batch[modality]).float(), batch[f"{modality}_classes"]
                losses.append(F.cross_entropy(scale * prompts @ self.anchors.T, classes))
                if images is not None:
                    losses.append(self._pairs(images, prompts, batch["labels"][:, classes]))
        return torch.stack(losses).sum()

    def _encode(self, pixels: Tensor, kept: Tensor) -> Tensor:
        """Unit-norm embeddings `[B, D]` of images of which only the patches `kept` `[B, k]` are used."""
        tokens = self.model.modality_preprocessors["vision"](pixels)
        patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        tokens = self.model.modality_trunks["vision"](torch.cat([tokens[:, :1], patches], dim=1))
        return F.normalize(self.model.modality_heads["vision"](tokens[:, 0]), dim=-1)

    def _pairs(self, images: Tensor, prompts: Tensor, labels: Tensor) -> Tensor:
        logits = self.log_scale.exp() * images @ prompts.T + self.bias
        # the mean over all pairs, weighted by 4
        return F.binary_cross_entropy_with_logits(logits, labels) * 4


class Batches:
    """Batches of a stage, drawn from the pool; a batch depends only on the seed, the stage and the step."""

    def __init__(
        self, pool: dict[str, Part], model: ImageBind, stage: Stage, batch: int, keep: float, seed: int
    ) -> None:
        self.pool, self.stage, self.batch, self.keep = pool, stage, batch, keep
        self.seed = [seed, list(Stage).index(stage)]
        self.texts: list[Tensor] = [model.tokens(texts(object_class, "train")) for object_class in range(len(CLASSES))]
        self.members = {
            part: [np.flatnonzero(pool[part].labels == object_class) for object_class in range(len(CLASSES))]
            for part in ("sounds", "speech")
        }
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))

    def __call__(self, step: int, size: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([*self.seed, step])
        batch = {} if self.stage == Stage.audio else self._images(rng, size)
        for part, number in PROMPTS_PER_CLASS.get(self.stage.value, {}).items():
            chosen = np.concatenate([rng.choice(members, number) for members in self.members[part]])
            batch[part] = _vary(torch.from_numpy(self.pool[part][chosen]).float()[:, None], rng)
            batch[f"{part}_classes"] = torch.from_numpy(self.pool[part].labels[chosen])
        if self.stage != Stage.audio:
            chosen_texts = [tokens[rng.integers(0, len(tokens), TEXTS_PER_CLASS)] for tokens in self.texts]
            batch["texts"] = torch.cat(chosen_texts)
            batch["texts_classes"] = torch.arange(len(CLASSES)).repeat_interleave(TEXTS_PER_CLASS)
        return batch

    def _images(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        near = size == CLOSE_UP_SIZE
        images = self.pool["close_ups" if near else "images"]
        indices = rng.integers(0, len(images), self.batch * 4 if near else self.batch)
        pixels = torch.from_numpy(images[indices]).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        flipped = torch.from_numpy(rng.random(len(indices)) < 0.5)
        pixels[flipped] = pixels[flipped].flip(-1)
        labels = torch.from_numpy(images.labels[indices])
        num_patches = (size // SHAPE["kernel_size"][-1]) ** 2
        order = rng.random((len(indices), num_patches), dtype=np.float32).argsort(1)
        return {
            "kept": torch.from_numpy(order[:, : round(num_patches * self.keep)]),
            "pixels": (pixels - self.mean) / self.std,
            "labels": F.one_hot(labels, len(CLASSES)).float() if near else labels.float(),
        }


def _vary(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """Augments log-mels `[N, 1, 128, 204]`: level, shifts in time and frequency, masked bands of both."""
    for mel in mels:
        mel += float(rng.normal(0, 0.15))
        mel.copy_(mel.roll((int(rng.integers(-2, 3)), int(rng.integers(-8, 9))), (1, 2)))
        low, width = int(rng.integers(0, 120)), int(rng.integers(0, 10))
        start, length = int(rng.integers(0, 190)), int(rng.integers(0, 8))
        mel[:, low : low + width] = mel.mean()
        mel[:, :, start : start + length] = mel.mean()
    return mels


def image_size(stage: Stage, step: int, steps: int, near: float, fine: float) -> int:
    """Close-ups first, on which the classes are learned much faster; then scenes at 3/4 size, last at full size."""
    full: int = SHAPE["image_size"]
    if stage == Stage.joint:
        return full
    if step < near * steps:
        return CLOSE_UP_SIZE
    return full if step >= (1 - fine) * steps else full * 3 // 4


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 3 %, then cosine decay to 1 % of the peak."""
    warm = max(1, steps * 3 // 100)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def make_optimizers(trainer: Trainer, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, at twice the learning rate, and AdamW for the rest.

    With Muon the towers need a third of AdamW's steps.
    """
    trained = {name: p for name, p in trainer.named_parameters() if p.requires_grad}
    hidden = [p for name, p in trained.items() if ".blocks." in name and p.ndim == 2]
    decayed = [p for name, p in trained.items() if ".blocks." not in name and p.ndim > 1]
    plain = [p for p in trained.values() if p.ndim <= 1]
    muon = {"params": hidden, "peak": 2 * peak, "weight_decay": 0.05}
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return [
        torch.optim.Muon([muon], adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{**group, "peak": peak} for group in groups], betas=(0.9, 0.98), fused=True),
    ]


def export(trainer: Trainer, path: Path) -> None:
    """Writes the model in float16, in the checkpoint's layout, with its configuration in the file's metadata."""
    model = trainer.model
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    metadata = {
        "config": {**SHAPE, "text_vocab_size": len(model.vocabulary or ())},
        "vocabulary": model.vocabulary,
        "scale": round(trainer.log_scale.exp().item(), 6),
        "bias": round(trainer.bias.item(), 6),
    }
    # a single entry: the order of several is random
    content = save(state, {"avgrad": json.dumps(metadata)})
    write_atomic(path, content)


def _save(path: Path, state: dict[str, Any]) -> None:
    write_atomic(path, lambda file: torch.save(state, file))


def _assemble(trainer: Trainer, out: Path) -> None:
    """Starts the joint stage from the towers of the vision and audio stages."""
    trained = torch.load(out / "vision.pt", weights_only=True)["trainer"]
    audio = torch.load(out / "audio.pt", weights_only=True)["trainer"]
    trainer.load_state_dict({key: audio[key] if ".audio." in key else value for key, value in trained.items()})


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command resumes it.")],
    stage: Annotated[
        list[Stage] | None, typer.Option(help="Run only these stages; vision and audio may run in parallel.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images in the pool.")] = 65_536,
    close_ups: Annotated[int, typer.Option(help="Close-ups of one object in the pool.")] = 32_768,
    prompts: Annotated[int, typer.Option(help="Sounds, and as many spoken names, in the pool.")] = 16_384,
    vision_steps: Annotated[int, typer.Option(help="Steps of the vision stage.")] = 3_800,
    audio_steps: Annotated[int, typer.Option(help="Steps of the audio stage.")] = 2_000,
    joint_steps: Annotated[int, typer.Option(help="Steps of the joint stage.")] = 150,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 192,
    keep: Annotated[float, typer.Option(help="Share of an image's patches that a step uses.")] = 0.3,
    near: Annotated[float, typer.Option(help="Share of the vision stage on close-ups, at its start.")] = 0.08,
    fine: Annotated[float, typer.Option(help="Share of it at full size, at its end; 3/4 size in between.")] = 0.12,
    peak: Annotated[float, typer.Option(help="Peak learning rate; a fifth of it in the joint stage.")] = 1.5e-3,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that build the pool.")] = os.cpu_count() or 1,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations on held-out data.")] = 400,
    held_out: Annotated[int, typer.Option(help="Held-out scenes.")] = 200,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
) -> None:
    """Trains avgrad-mini; writes OUT/mini.safetensors and OUT/log.jsonl."""
    counts = {"images": images, "close_ups": close_ups, "sounds": prompts, "speech": prompts}
    pool = make_pool(out / "pool", counts, seed, SHAPE["image_size"], workers)
    data = HeldOut(held_out, SHAPE["image_size"])
    lengths = {Stage.vision: vision_steps, Stage.audio: audio_steps, Stage.joint: joint_steps}
    for current in stage or list(Stage):
        steps, start = lengths[current], time.perf_counter()
        trainer = Trainer(seed).to(device)
        batches = Batches(pool, trainer.model, current, batch, keep, seed)
        optimizers = make_optimizers(trainer, peak / 5 if current == Stage.joint else peak)
        checkpoint, first = out / f"{current.value}.pt", 0
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True, map_location=device)
            trainer.load_state_dict(state["trainer"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            first = state["step"]
        elif current == Stage.joint:
            _assemble(trainer, out)
        progress = tqdm(range(first, steps), initial=first, total=steps, desc=current.value, unit="step")
        for step in progress:
            size = image_size(current, step, steps, near, fine)
            on_device = {key: value.to(device) for key, value in batches(step, size).items()}
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = learning_rate(step, steps, group["peak"])
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                loss = trainer.loss(on_device)
            trainer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            last = step + 1 == steps
            if (step + 1) % save_every == 0 or last:
                saved = [optimizer.state_dict() for optimizer in optimizers]
                _save(checkpoint, {"trainer": trainer.state_dict(), "optimizers": saved, "step": step + 1})
            if (step + 1) % evaluate_every == 0 or last:
                if current == Stage.joint:
                    export(trainer, out / "mini.safetensors")
                trainer.eval()
                figures: dict[str, Any] = {"stage": current.value, "step": step + 1, "loss": round(loss.item(), 4)}
                modalities = {Stage.vision: ["text"], Stage.audio: []}.get(current, ["sound", "speech", "text"])
                found = data.figures(trainer.model, modalities) | data.accuracy(trainer.model, trainer.anchors)
                figures |= {key: round(value, 4) for key, value in found.items()}
                figures["seconds"] = round(time.perf_counter() - start, 1)
                trainer.train()
                tqdm.write(json.dumps(figures))
                with (out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    typer.run(train)
