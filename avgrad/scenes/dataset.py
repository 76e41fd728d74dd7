"""Writes synthetic scenes in the on-disk layout of ADE20KSoundPrompted and ADE20KSpeechPrompted."""

import csv
import json
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from avgrad.errors import InputError
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.images import draw_scene, scene_rng
from avgrad.scenes.sounds import SAMPLE_RATE, mix_sound
from avgrad.scenes.speech import spoken
from avgrad.scenes.texts import Split

Prompting = Literal["sound", "speech"]

CSV_NAME = "prompted_segmentation.csv"
PROMPT_COLUMNS: dict[Prompting, str] = {"sound": "vggsound_file", "speech": "speech_prompt_file"}

_JPEG_QUALITY = 95


class DatasetError(InputError):
    """A data set cannot be written with these arguments."""


def encode_annotation(class_ids: NDArray[np.integer], instances: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Encodes class ids as ADE20K does: class id = (R // 10) * 256 + G, with the instance in B.

    Args:
        class_ids: [H, W], 0 (background) to 6655.
        instances: [H, W], 0 to 255.

    Returns:
        RGB [H, W, 3]; inverted by `decode_annotation`.
    """
    return np.stack([class_ids // 256 * 10, class_ids % 256, instances], axis=-1).astype(np.uint8)


def decode_annotation(annotation: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The class ids [H, W] of an ADE20K annotation, RGB [H, W, 3]."""
    wide = annotation.astype(np.int64)
    return wide[..., 0] // 10 * 256 + wide[..., 1]


def write_dataset(
    out: str | Path,
    n: int,
    seed: int = 0,
    prompt: Prompting = "sound",
    size: int = 256,
    split: Split = "heldout",
    progress: bool = True,
) -> Path:
    """Writes a data set of `n` images, each with a prompt for one of its objects.

    The layout is `prompted_segmentation.csv` (columns `image_location`, `vggsound_file` or `speech_prompt_file`,
    `ade_class_id`, `timing`, `class_name`; file names without their folder), `frames/*.jpg`, `annotations/*_seg.png`
    (class id = (R // 10) * 256 + G, B numbers the objects of the image) and `audio/*.wav`. `timing` is JSON, the start
    and the end of the spoken name in seconds; it is empty for sounds. Every class is prompted equally often, in random
    order. Item i depends only on `seed`, `size`, `prompt`, `split` and i, and its image only on `seed`, `size` and i: a
    longer data set starts with the shorter one.

    Args:
        out: folder to create; it is written under a temporary name and renamed at the end.
        n: number of images and rows, 1 or more.
        seed: 0 or more.
        prompt: "sound" (3 to 6 seconds at 16 kHz, with noise and often softer sounds of other classes) or "speech".
        size: height and width of the images in pixels, 64 or more.
        split: voices and phrases of the spoken prompts: "heldout" or "train".
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder exists, or an argument is out of range.
    """
    target = Path(out)
    if target.exists():
        raise DatasetError(f"{target} exists already; a data set is written to a new folder")
    if prompt not in PROMPT_COLUMNS or n < 1 or seed < 0 or size < 64 or split not in ("train", "heldout"):
        raise DatasetError(
            "a data set needs n >= 1, seed >= 0, prompt 'sound' or 'speech', size >= 64, split 'train' or 'heldout'; "
            f"got n={n}, seed={seed}, prompt={prompt!r}, size={size}, split={split!r}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        partial.chmod(0o755)
        for folder in ("frames", "annotations", "audio"):
            (partial / folder).mkdir()
        with (partial / CSV_NAME).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image_location", PROMPT_COLUMNS[prompt], "ade_class_id", "timing", "class_name"])
            for index in tqdm(range(n), desc=f"scenes for {target.name}", unit="scene", disable=not progress):
                writer.writerow(_write_item(partial, index, seed, prompt, size, split))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _prompted_class(seed: int, index: int) -> int:
    """The class that row `index` prompts; each run of `len(CLASSES)` rows has every class once."""
    run, place = divmod(index, len(CLASSES))
    return int(scene_rng("dataset order", seed, run).permutation(len(CLASSES))[place])


def _write_item(folder: Path, index: int, seed: int, prompt: Prompting, size: int, split: Split) -> list[str]:
    """Writes the files of one item; returns its row."""
    import soundfile

    object_class = _prompted_class(seed, index)
    image_rng = scene_rng("dataset picture", seed, index)
    count = int(image_rng.choice(4, p=(0.25, 0.35, 0.25, 0.15))) + 1
    scene = draw_scene(image_rng, size, num_objects=count, classes=[object_class])
    frame, audio = f"scene_{index:06d}.jpg", f"scene_{index:06d}.wav"
    Image.fromarray(scene.image).save(folder / "frames" / frame, quality=_JPEG_QUALITY, subsampling=0)
    class_ids = np.zeros((size, size), dtype=np.int64)
    instances = np.zeros((size, size), dtype=np.int64)
    for number, (shown, mask) in enumerate(zip(scene.classes, scene.masks, strict=True), start=1):
        class_ids[mask] = CLASSES[shown].ade_class_id
        instances[mask] = number
    annotation = Image.fromarray(encode_annotation(class_ids, instances))
    annotation.save(folder / f"annotations/scene_{index:06d}_seg.png")
    rng = scene_rng(f"dataset {prompt}", seed, index)
    timing = ""
    if prompt == "sound":
        others = rng.choice(len(CLASSES), int(rng.integers(0, 3)), replace=False).tolist()
        waveform = mix_sound(object_class, rng, rng.uniform(3, 6), [other for other in others if other != object_class])
    else:
        phrase = spoken(object_class, rng, split)
        waveform, timing = phrase.waveform, json.dumps([round(phrase.start, 3), round(phrase.end, 3)])
    soundfile.write(folder / "audio" / audio, waveform, SAMPLE_RATE, subtype="PCM_16")
    return [frame, audio, str(CLASSES[object_class].ade_class_id), timing, CLASSES[object_class].name]
