"""The pool of training examples: synthetic images, sounds and spoken names, generated once and memory-mapped.

An example depends only on the seed and its index, so that an interrupted run can be resumed, and the pool does not
depend on the number of processes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from avgrad.encoders.audio import SAMPLE_RATE, log_mel
from avgrad.files import write_atomic
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.images import draw_scene, scene_rng
from avgrad.scenes.sounds import mix_sound
from avgrad.scenes.speech import spoken

BLOCK = 512  # examples per file
CLIP_SECONDS = 2.0


@dataclass(frozen=True)
class Part:
    """One part of the pool: N examples with their labels, in files of `BLOCK` examples.

    Attributes:
        values: one memory-mapped array per file, `[BLOCK, ...]`.
        labels: of all examples, `[N, ...]`.
    """

    values: list[NDArray[Any]]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return np.stack([self.values[index // BLOCK][index % BLOCK] for index in indices.tolist()])


def image(seed: int, index: int, size: int, domain: str = "train") -> tuple[NDArray[Any], NDArray[Any]]:
    """A scene's image, uint8 `[size, size, 3]`, and which classes are in it, bool `[K]`; no masks."""
    scene = draw_scene(scene_rng(domain, seed, index), size)
    present = np.zeros(len(CLASSES), dtype=bool)
    present[scene.classes] = True
    return scene.image, present


def close_up(seed: int, index: int, size: int, domain: str = "train") -> tuple[NDArray[Any], NDArray[Any]]:
    """One object at the scale it has in a scene of 3/4 size: uint8 `[3/8 size, 3/8 size, 3]`, and its class."""
    rng = scene_rng(f"{domain} close-ups", seed, index)
    scene = draw_scene(rng, size * 3 // 8, num_objects=1, classes=[index % len(CLASSES)], zoom=4.0)
    return scene.image, np.array(index % len(CLASSES))


def sound(seed: int, index: int, size: int, domain: str = "train") -> tuple[NDArray[Any], NDArray[Any]]:
    """A sound's log-mel, float16 `[128, 204]`, and its class. `size` is ignored here."""
    rng = scene_rng(f"{domain} sounds", seed, index)
    object_class = index % len(CLASSES)
    others = [int(k) for k in rng.permutation(len(CLASSES)) if k != object_class][
        : int(rng.choice(3, p=(0.45, 0.35, 0.2)))
    ]
    # some sounds are shorter; the encoder pads them
    seconds = CLIP_SECONDS if rng.random() < 0.8 else float(rng.uniform(0.6, CLIP_SECONDS))
    return _mel(mix_sound(object_class, rng, seconds, others, SAMPLE_RATE)), np.array(object_class)


def speech(seed: int, index: int, size: int, domain: str = "train") -> tuple[NDArray[Any], NDArray[Any]]:
    """A spoken name's log-mel, float16 `[128, 204]`, and its class. `size` is ignored here."""
    rng = scene_rng(f"{domain} speech", seed, index)
    object_class = index % len(CLASSES)
    phrase = spoken(object_class, rng, "train", augment=True)
    # as in real recordings: silence in front, or a phrase whose start is cut off
    start = int(phrase.start * SAMPLE_RATE * rng.random()) if rng.random() < 0.4 else 0
    silence = rng.normal(0, 1e-4, int(rng.uniform(0, 0.6) * SAMPLE_RATE)).astype(np.float32)
    waveform = np.concatenate([silence, phrase.waveform[start:]])
    return _mel(waveform[-int(CLIP_SECONDS * SAMPLE_RATE) :]), np.array(object_class)


def _mel(waveform: NDArray[np.float32]) -> NDArray[np.float16]:
    mel: NDArray[np.float16] = log_mel(torch.from_numpy(waveform)[None])[0].half().numpy()
    return mel


PARTS: dict[str, Callable[..., tuple[NDArray[Any], NDArray[Any]]]] = {
    "images": image,
    "close_ups": close_up,
    "sounds": sound,
    "speech": speech,
}


def _make_block(job: tuple[str, int, int, int, str]) -> None:
    part, seed, start, size, path = job
    torch.set_num_threads(1)
    values, labels = zip(*(PARTS[part](seed, start + i, size) for i in range(BLOCK)), strict=True)
    # labels first: a block is complete when its values exist
    write_atomic(path.replace(".npy", ".labels.npy"), lambda file: np.save(file, np.stack(labels)))
    write_atomic(path, lambda file: np.save(file, np.stack(values)))


def make_pool(folder: Path, counts: dict[str, int], seed: int, size: int, workers: int) -> dict[str, Part]:
    """The pool in `folder`; missing files are generated.

    Args:
        folder: of its files.
        counts: number of examples of each of `PARTS`, rounded up to whole files.
        seed: random seed of all examples.
        size: side of the images in pixels.
        workers: number of processes.

    Returns:
        Each part by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        part: [folder / f"{part}_{size}_{seed}_{block:05d}.npy" for block in range(-(-count // BLOCK))]
        for part, count in counts.items()
    }
    jobs = [
        (part, seed, number * BLOCK, size, str(path))
        for part, files in paths.items()
        for number, path in enumerate(files)
        if not path.exists()
    ]
    if jobs:
        with multiprocessing.get_context("spawn").Pool(workers) as processes:
            progress = tqdm(processes.imap_unordered(_make_block, jobs), total=len(jobs), desc="examples", unit="file")
            for _ in progress:
                pass
    return {
        part: Part(
            [np.load(path, mmap_mode="r") for path in files],
            np.concatenate([np.load(str(path).replace(".npy", ".labels.npy")) for path in files]),
        )
        for part, files in paths.items()
    }
