"""A small model and small data for the tests of the benchmarks; run as a program, a benchmark over them.

    python eval_small.py DATA TASK OUT SEED

Under torchrun, "RANK" in OUT becomes the number of the process. Each process writes its id beside OUT.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import avgrad
from avgrad.models.imagebind import ImageBind
from avgrad.models.towers import ImageBindConfig
from eval.__main__ import benchmark
from eval.runner import Settings, process_group
from eval.task import get_task
from eval.tasks.ade20k import Ade20k, Ade20kSound, Ade20kSpeech

Prompt = Literal["sound", "speech"]
TASKS: dict[Prompt, type[Ade20k]] = {"sound": Ade20kSound, "speech": Ade20kSpeech}
CLASSES = {300: "dog", 1259: "cat", 2000: "bell"}


def small_model(seed: int = 0, **config: Any) -> ImageBind:
    """ImageBind with small vision and audio towers and random weights."""
    shape = {"vision_embed_dim": 48, "vision_num_blocks": 3, "vision_num_heads": 3, "audio_embed_dim": 32,
             "audio_num_blocks": 2, "audio_num_heads": 2, "out_embed_dim": 24, **config}  # fmt: skip
    model = ImageBind(ImageBindConfig.from_names(shape), ("vision", "audio"), name="small")
    model.initialize(torch.Generator().manual_seed(seed)).eval().requires_grad_(False)
    with torch.no_grad():  # larger than for training, so that every part of the model matters
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def write_item(root: Path, name: str, class_id: int, generator: np.random.Generator, seconds: float = 1.0) -> None:
    """One image with a rectangle of its class and one of another, its label map, and a tone."""
    for folder in ("frames", "annotations", "audio"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    height, width = 60, 80
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width, 3), dtype=np.uint8)
    for place, label in ((20, class_id), (45, 77)):
        top = int(generator.integers(5, 30))
        box = np.s_[top : top + 20, place : place + 18]
        pixels[box] = label % 200
        # R holds the upper part times 10 and a remainder without meaning
        labels[box] = (label // 256 * 10 + 3, label % 256, 1)
    Image.fromarray(pixels).save(root / "frames" / f"{name}.jpg", quality=95)
    Image.fromarray(labels).save(root / "annotations" / f"{name}_seg.png")
    time = np.arange(int(16_000 * seconds)) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * (200 + class_id) * time) + 0.05 * generator.standard_normal(len(time))
    soundfile.write(root / "audio" / f"{name}.wav", sound, 16_000, subtype="PCM_16")


def write_table(root: Path, prompt: Prompt, rows: Sequence[dict[str, Any]]) -> None:
    """The table, with an unknown column."""
    columns = ["unnamed", "image_location", TASKS[prompt].prompt_column, "ade_class_id", "timing", "class_name"]
    with open(root / "prompted_segmentation.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def row(name: str, prompt: Prompt, class_id: int, **changes: Any) -> dict[str, Any]:
    """A good row, but for the changes."""
    timing = json.dumps([0.3, 0.6]) if prompt == "speech" else ""
    fields = {"image_location": f"{name}.jpg", TASKS[prompt].prompt_column: f"some/where/{name}.wav",
              "ade_class_id": class_id, "timing": timing, "class_name": CLASSES.get(class_id, "object")}  # fmt: skip
    return {**fields, **changes}


def write_data(root: Path, prompt: Prompt, count: int, seed: int = 0) -> Path:
    """A data set without problems."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        class_id = list(CLASSES)[number % len(CLASSES)]
        write_item(root, f"scene {number}", class_id, generator)
        rows.append(row(f"scene {number}", prompt, class_id))
    write_table(root, prompt, rows)
    return root


def main() -> None:
    data, name, out, seed = sys.argv[1:]
    rank = os.environ.get("RANK", "0")
    out = out.replace("RANK", rank)
    Path(f"{out}.new{rank}").write_text(str(os.getpid()))
    os.replace(f"{out}.new{rank}", f"{out}.pid{rank}")  # atomic
    task = get_task(name)(Path(data))
    # the small model takes no texts
    model = avgrad.load("mini") if "text" in task.modalities else small_model(int(seed))
    with process_group():
        benchmark(
            model,
            task,
            Path(out),
            Settings(batch_size=2),
            {"seed": seed},
            workers=1,
        )


if __name__ == "__main__":
    main()
