"""Trains avgrad-mini on made-up scenes: `python -m avgrad.scenes.train --out RUN`.

Supervision is image-level: the loss is told which kinds of things are in a picture, never where. As ImageBind binds
modalities to images, each sound, spoken name and text is pulled towards the pictures in which its thing is, and pushed
from those in which it is not (a sigmoid loss over all pairs of pictures and prompts in a batch).
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from avgrad.encoders.image import CLIP_MEAN, CLIP_STD
from avgrad.encoders.text import tokenize
from avgrad.models.imagebind import ImageBind
from avgrad.models.towers import ImageBindConfig
from avgrad.scenes.held_out import HeldOut
from avgrad.scenes.kinds import KINDS
from avgrad.scenes.pool import Part, make_pool
from avgrad.scenes.texts import texts

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
PROMPTS_PER_KIND = {"sounds": 2, "speech": 3, "texts": 2}
SAVE_EVERY = 250  # steps


def vocabulary() -> list[int]:
    """CLIP token ids of all texts that the scenes know, and those that every text has, ascending."""
    every = [text for split in ("train", "heldout") for kind in range(len(KINDS)) for text in texts(kind, split)]
    return sorted(set(tokenize(every, SHAPE["text_context_length"]).flatten().tolist()) | {0})


class Trainer(nn.Module):
    """The model with the scale and bias that turn a cosine similarity into the odds that the thing is there."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        words = vocabulary()
        config = ImageBindConfig(**SHAPE, text_vocab_size=len(words))
        self.model = ImageBind(config, name="mini", vocabulary=words)
        self.model.initialize(torch.Generator().manual_seed(seed))
        self.model.modality_postprocessors.requires_grad_(False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-3.0))
        # one free direction per kind: pictures and prompts find each other much sooner when both also meet here
        anchors = torch.empty(len(KINDS), SHAPE["out_embed_dim"])
        self.anchors = nn.Parameter(nn.init.normal_(anchors, generator=torch.Generator().manual_seed(seed + 1)))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The sigmoid loss over all pairs of pictures and prompts; each modality weighs the same."""
        images = self.model.tower("vision", batch["pixels"]).float()
        scale, anchors = self.log_scale.exp(), F.normalize(self.anchors, dim=-1)
        losses = [F.binary_cross_entropy_with_logits(scale * images @ anchors.T + self.bias, batch["labels"])]
        mels = self.model.tower("audio", torch.cat([batch["sounds"], batch["speech"]])).float()
        sounds, speech = mels.split([len(batch["sounds"]), len(batch["speech"])])
        for name, prompts in (
            ("sounds", sounds),
            ("speech", speech),
            ("texts", self.model.tower("text", batch["texts"]).float()),
        ):
            kinds = batch[f"{name}_kinds"]
            logits = scale * images @ prompts.T + self.bias
            losses.append(F.binary_cross_entropy_with_logits(logits, batch["labels"][:, kinds]))
            losses.append(F.cross_entropy(scale * prompts @ anchors.T, kinds))
        return torch.stack(losses).mean()


class Batches:
    """Batch number `step` of a run: drawn from the pool by the run's seed and the step alone."""

    def __init__(self, pool: dict[str, Part], model: ImageBind, batch: int, seed: int) -> None:
        self.pool, self.batch, self.seed = pool, batch, seed
        self.texts: list[Tensor] = [model.tokens(texts(kind, "train")) for kind in range(len(KINDS))]
        self.members = {
            part: [np.flatnonzero(pool[part].labels == kind) for kind in range(len(KINDS))]
            for part in ("sounds", "speech")
        }
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))

    def __call__(self, step: int, size: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, step])
        near = size == CLOSE_UP_SIZE
        pictures = self.pool["close_ups" if near else "pictures"]
        indices = rng.integers(0, len(pictures), self.batch * 4 if near else self.batch)
        pixels = torch.from_numpy(pictures[indices]).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        flipped = torch.from_numpy(rng.random(len(indices)) < 0.5)
        pixels[flipped] = pixels[flipped].flip(-1)
        labels = torch.from_numpy(pictures.labels[indices])
        batch = {
            "pixels": (pixels - self.mean) / self.std,
            "labels": F.one_hot(labels, len(KINDS)).float() if near else labels.float(),
        }
        for part, members in self.members.items():
            chosen = np.concatenate([rng.choice(m, PROMPTS_PER_KIND[part]) for m in members])
            batch[part] = _vary(torch.from_numpy(self.pool[part][chosen]).float()[:, None], rng)
            batch[f"{part}_kinds"] = torch.from_numpy(self.pool[part].labels[chosen])
        chosen_texts = [tokens[rng.integers(0, len(tokens), PROMPTS_PER_KIND["texts"])] for tokens in self.texts]
        batch["texts"] = torch.cat(chosen_texts)
        batch["texts_kinds"] = torch.arange(len(KINDS)).repeat_interleave(PROMPTS_PER_KIND["texts"])
        return batch


def _vary(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """Log-mels `[N, 1, 128, 204]` at other levels, shifted in time and pitch, with bands of time and pitch masked."""
    for mel in mels:
        mel += float(rng.normal(0, 0.15))
        mel.copy_(mel.roll((int(rng.integers(-2, 3)), int(rng.integers(-20, 21))), (1, 2)))
        low, width = int(rng.integers(0, 120)), int(rng.integers(0, 16))
        start, length = int(rng.integers(0, 190)), int(rng.integers(0, 24))
        mel[:, low : low + width] = mel.mean()
        mel[:, :, start : start + length] = mel.mean()
    return mels


def picture_size(step: int, steps: int, near: float, fine: float) -> int:
    """Close-ups first, which teach the kinds in a fraction of the time; then scenes at 3/4, last at full size."""
    if step < near * steps:
        return CLOSE_UP_SIZE
    full: int = SHAPE["image_size"]
    return full if step >= (1 - fine) * steps else full * 3 // 4


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 3 %, then a cosine to almost nothing."""
    warm = max(1, steps * 3 // 100)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def export(trainer: Trainer, path: Path) -> None:
    """Writes the model in half precision, in the checkpoint's layout, with its shape in the file's metadata."""
    model = trainer.model
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    metadata = {
        "config": json.dumps({**SHAPE, "text_vocab_size": len(model.vocabulary or ())}),
        "vocabulary": json.dumps(model.vocabulary),
        "scale": f"{trainer.log_scale.exp().item():.6f}",
        "bias": f"{trainer.bias.item():.6f}",
    }
    part = path.with_suffix(".part")
    save_file(state, part, metadata)
    part.chmod(0o644)
    part.replace(path)


def _save(path: Path, state: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on where it stopped.")],
    pictures: Annotated[int, typer.Option(help="Pictures in the pool.")] = 73_728,
    close_ups: Annotated[int, typer.Option(help="Close-ups of one thing in the pool.")] = 98_304,
    prompts: Annotated[int, typer.Option(help="Sounds, and spoken names, in the pool.")] = 16_384,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 3_400,
    batch: Annotated[int, typer.Option(help="Pictures in a step.")] = 64,
    near: Annotated[float, typer.Option(help="Share of the steps, at the start, on close-ups.")] = 0.36,
    fine: Annotated[float, typer.Option(help="Share of the steps, at the end, at full size; before, at 3/4.")] = 0.18,
    peak: Annotated[float, typer.Option(help="Largest learning rate.")] = 1.5e-3,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that make the pool.")] = os.cpu_count() or 1,
    evaluate_every: Annotated[int, typer.Option(help="Steps between held-out figures.")] = 300,
) -> None:
    """Trains avgrad-mini; writes OUT/mini.safetensors and OUT/log.jsonl."""
    counts = {"pictures": pictures, "close_ups": close_ups, "sounds": prompts, "speech": prompts}
    pool = make_pool(out / "pool", counts, seed, SHAPE["image_size"], workers)
    trainer = Trainer(seed).to(device)
    batches = Batches(pool, trainer.model, batch, seed)
    decayed = [p for p in trainer.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in trainer.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    held_out, checkpoint, first = HeldOut(200, SHAPE["image_size"]), out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        trainer.load_state_dict(state["trainer"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    start = time.perf_counter()
    progress = tqdm(range(first, steps), initial=first, total=steps, desc="training", unit="step")
    for step in progress:
        size = picture_size(step, steps, near, fine)
        on_device = {key: value.to(device) for key, value in batches(step, size).items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = trainer.loss(on_device)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            _save(
                checkpoint,
                {"trainer": trainer.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
            )
        if (step + 1) % evaluate_every == 0 or step + 1 == steps:
            export(trainer, out / "mini.safetensors")
            trainer.eval()
            figures: dict[str, Any] = {"step": step + 1, "loss": round(loss.item(), 4)}
            figures |= {key: round(value, 4) for key, value in held_out.figures(trainer.model).items()}
            figures["seconds"] = round(time.perf_counter() - start, 1)
            trainer.train()
            tqdm.write(json.dumps(figures))
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    typer.run(train)

