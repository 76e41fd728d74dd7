"""Small data sets in the layouts of the benchmarks, with random images and tones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from eval.metrics.avsbench import palette
from eval.metrics.funnybirds import COLORS, PARTS

Rng = np.random.Generator


def write_image(path: Path, rng: Rng, size: tuple[int, int] = (80, 60)) -> None:
    """A random image of (width, height) with a rectangle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    left, top = (int(rng.integers(5, side // 2)) for side in size)
    pixels[top : top + 20, left : left + 20] = rng.integers(0, 256, 3, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_tone(path: Path, rng: Rng) -> None:
    """A second of a random tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(16_000) / 16_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time), 16_000, subtype="PCM_16")


def random_box(rng: Rng) -> list[float]:
    """xmin, ymin, xmax, ymax as fractions."""
    left, top = rng.uniform(0, 0.5, 2)
    return [left, top, left + rng.uniform(0.1, 0.4), top + rng.uniform(0.1, 0.4)]


def write_vggss(root: Path, count: int, seed: int = 0) -> Path:
    """VGG-SS with boxes for all ids but the last."""
    rng, ids, records = np.random.default_rng(seed), [], []
    for number in range(count):
        name = f"video{number}_000030"
        write_image(root / "frames" / f"{name}.jpg", rng)
        write_tone(root / "audio" / f"{name}.wav", rng)
        boxes = [random_box(rng) for _ in range(1 + number % 2)]
        records.append({"file": name, "class": ("dog barking", "church bell")[number % 2], "bbox": boxes})
        ids.append(name)
    (root / "metadata").mkdir()
    (root / "metadata" / "vggss.json").write_text(json.dumps(records))
    (root / "metadata" / "vggss_test.csv").write_text("".join(f"{name}\n" for name in ids))
    return root


def write_duet(root: Path, count: int, seed: int = 0) -> Path:
    """VGGSound-Duet: pairs of neighbors among videos of VGG-SS."""
    write_vggss(root, count, seed)
    ids = [f"video{number}_000030" for number in range(count)]
    names = ("dog_barking", "church_bell")
    rows = [f"{a},{names[n % 2]},{b},{names[(n + 1) % 2]}\n" for n, (a, b) in enumerate(pairwise(ids))]
    (root / "metadata" / "vggsound_duet_test.csv").write_text("".join(rows))
    return root


def write_flickr(root: Path, count: int, seed: int = 0) -> Path:
    """Flickr-SoundNet with one to three annotators."""
    rng, ids = np.random.default_rng(seed), []
    (root / "Annotations").mkdir(parents=True)
    for number in range(count):
        name = str(10**10 + number)
        write_image(root / "frames" / f"{name}.jpg", rng)
        write_tone(root / "audio" / f"{name}.wav", rng)
        annotators = []
        for _ in range(1 + number % 3):
            numbers = zip(("xmin", "ymin", "xmax", "ymax"), (256 * np.array(random_box(rng))).astype(int), strict=True)
            box = "".join(f"<{key}>{value}</{key}>" for key, value in numbers)
            annotators.append(f"<annotator><bbox><id>0</id>{box}</bbox></annotator>")
        (root / "Annotations" / f"{name}.xml").write_text(f"<root>{''.join(annotators)}</root>")
        ids.append(name)
    (root / "metadata").mkdir()
    (root / "metadata" / "flickr_test.csv").write_text("".join(f"{name},202\n" for name in ids))
    return root


def write_interactive(
    root: Path, count: int, seed: int = 0, name: str = "synthetic3240", folder: str = "images", masks: str = ""
) -> Path:
    """IS3 (or VPO): pairs of sounds, one of the last image's without a box; with a folder of masks, their list, too."""
    rng, records, segmentations = np.random.default_rng(seed), [], []
    for number in range(count):
        sound = ("dog", "guitar")[number % 2]
        stem = f"dog_guitar_{number // 2}_{sound}"
        write_image(root / folder / f"{stem}.jpg", rng)
        write_tone(root / "audio_wav" / f"{stem}.wav", rng)
        box = [] if number == count - 1 else (224 * np.array(random_box(rng))).round().tolist()
        records.append({"image": f"/x/{stem}.jpg", "audio": f"/x/{stem}.wav", "gt_box": box})
        if masks:
            write_mask(root / masks / f"{stem}.jpg", rng)
            segmentations.append({**records[-1], "gt_box": f"/x/gt_masks/{stem}.jpg", "offset": 1})
    (root / "metadata").mkdir()
    (root / "metadata" / f"{name}_bbox.json").write_text(json.dumps(records))
    if masks:
        (root / "metadata" / f"{name}_seg.json").write_text(json.dumps(segmentations))
    return root


def write_imagenet_segmentation(root: Path, count: int, seed: int = 0) -> Path:
    """gtsegs_ijcv.mat, each image with a mask of its own size."""
    import h5py

    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    references = h5py.special_dtype(ref=h5py.Reference)
    with h5py.File(root / "gtsegs_ijcv.mat", "w") as file:
        images, masks = (file.create_dataset(f"value/{name}", (count, 1), dtype=references) for name in ("img", "gt"))
        for number in range(count):
            width, height = 60 + 10 * number, 80
            pixels = rng.integers(0, 256, (3, width, height), dtype=np.uint8)
            mask = np.zeros((width, height), dtype=np.uint8)
            mask[10:30, 20 : 40 + number] = 1
            cells = file.create_dataset(f"cells/{number}", (1, 1), dtype=references)
            cells[0, 0] = file.create_dataset(f"masks/{number}", data=mask).ref
            masks[number, 0] = cells.ref
            images[number, 0] = file.create_dataset(f"images/{number}", data=pixels).ref
    return root


def write_imagenet(root: Path, count: int, seed: int = 0) -> Path:
    """Validation folders of two of ImageNet's classes (0 and 3)."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        write_image(root / "val" / ("n01440764", "n01491361")[number % 2] / f"ILSVRC2012_val_{number:08d}.JPEG", rng)
    return root


def write_mask(path: Path, rng: Rng) -> None:
    """A mask of 224 x 224 pixels, at times empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((224, 224), dtype=np.uint8)
    if rng.random() < 0.8:
        left, top, right, bottom = (224 * np.array(random_box(rng))).astype(int)
        mask[top:bottom, left:right] = 255
    Image.fromarray(mask).save(path)


def write_avsbench(root: Path, count: int, seed: int = 0, multiple: bool = False) -> Path:
    """AVSBench with `count` videos in the test split and one in another."""
    rng, rows = np.random.default_rng(seed), []
    base = root / ("Multi-sources" if multiple else "Single-source")
    data = base / ("ms3_data" if multiple else "s4_data")
    for number in range(count):
        video, folder = f"video{number}", "test" if multiple else "test/male_speech"
        write_tone(data / "audio_wav" / folder / f"{video}.wav", rng)
        for frame in range(1, 6):
            write_mask(data / "gt_masks" / folder / video / f"{video}_{frame}.png", rng)
            name = f"{video}.mp4_{frame}.png" if multiple else f"{folder}/{video}/{video}_{frame}.png"
            place = data / "visual_frames" / (f"{video}/{name}" if multiple else name)
            write_image(place, rng, (224, 224))
        rows.append(f"{video},test" if multiple else f"{video},30,male_speech,test")
    table = ["name,split", "other,train"] if multiple else ["name,start,category,split", "other,0,dog,val"]
    (base / f"{data.name.removesuffix('_data')}_meta_data.csv").write_text("\n".join([*table, *rows]) + "\n")
    return root


AVSS_CLASSES = ("background", "dog", "church_bell", "guitar")


def write_avss(root: Path, labels: Sequence[str], seed: int = 0) -> Path:
    """AVSBench-semantic with a video for each label in the test split and one in another."""
    rng, rows, colors = np.random.default_rng(seed), ["vid,uid,s_min,label,split", "x,other,0,v2,train"], palette(4)
    for number, label in enumerate(labels):
        folder = root / label / f"video{number}"
        write_tone(folder / "audio.wav", rng)
        for frame in range(10 if label == "v2" else 5):
            write_image(folder / "frames" / f"{frame}.jpg", rng, (120, 90))
            classes = np.zeros((90, 120), dtype=np.int64)
            classes[20 + frame : 50 + frame, 30:80] = 1 + number % 3
            if number % 2:
                classes[60:85, 10:40] = 1 + (number + 1) % 3
            (folder / "labels_rgb").mkdir(exist_ok=True)
            Image.fromarray(colors[classes]).save(folder / "labels_rgb" / f"{frame}.png")
        rows.append(f"x,video{number},0,{label},test")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    (root / "label2idx.json").write_text(json.dumps({name: index for index, name in enumerate(AVSS_CLASSES)}))
    return root


def write_openimages(root: Path, count: int, seed: int = 0) -> Path:
    """OpenImages V7: points of one or two of three classes in each image, and some that are unsure."""
    rng = np.random.default_rng(seed)
    labels = {"/m/0bt9lr": "Dog", "/m/026t6": "Drum", "/m/0342h": "Guitar"}
    lines = ["ImageId,X,Y,Label,EstimatedYesNo,Source,YesVotes,NoVotes,UnsureVotes,TextLabel"]
    for number in range(count):
        write_image(root / "validation" / f"{number:016x}.jpg", rng)
        for label in list(labels)[: 1 + number % 2]:
            answers = ["yes", *rng.choice(["yes", "no", "unsure"], 29)]
            for (x, y), answer in zip(rng.uniform(0, 1, (30, 2)).round(6), answers, strict=True):
                lines.append(f"{number:016x},{x},{y},{label},{answer},ih,1,0,0,")
    (root / "oidv7-val-annotations-point-labels.csv").write_text("\n".join(lines) + "\n")
    descriptions = "".join(f"{label},{name}\n" for label, name in labels.items())
    (root / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n" + descriptions)
    return root


def write_extended(root: Path, write: Callable[[Path, int], Path], name: str, count: int) -> Path:
    """A benchmark and a negative for each two positives: an image with the sound of another one."""
    write(root, count)
    stems = sorted(path.stem for path in (root / "frames").iterdir())
    rows = [f"{a},{b},non-sounding\n" for a, b in zip(stems[::2], stems[1::2], strict=False)]
    (root / "metadata" / f"{name}_test_plus_silent.csv").write_text("video,audio,label\n" + "".join(rows))
    return root


def write_funnybirds(root: Path, count: int, seed: int = 0) -> Path:
    """FunnyBirds with four classes, a color for each variant of a part, and one or two background objects."""
    rng = np.random.default_rng(seed)
    class_parts = [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 0]]
    colors = rng.integers(0, 200, (len(PARTS), 2, 3), dtype=np.uint8)
    rows = []
    for number in range(count):
        label, objects = number % len(class_parts), 1 + number % 2
        background = rng.integers(200, 256, (256, 256, 3), dtype=np.uint8)
        places = {part: (40 * index + 20, int(rng.integers(20, 200))) for index, part in enumerate(PARTS)}

        def draw(kept: Sequence[str], without: int = -1) -> Image.Image:
            pixels = background.copy()  # noqa: B023
            for b in range(objects):  # noqa: B023
                if b != without:
                    pixels[230:250, 30 * b : 30 * b + 20] = 100 + b
            for part in kept:
                top, left = places[part]  # noqa: B023
                variant = class_parts[label][PARTS.index(part)]  # noqa: B023
                pixels[top : top + 30, left : left + 30] = colors[PARTS.index(part), variant]
            return Image.fromarray(pixels)

        def save(image: Image.Image, path: str) -> None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGBA").save(root / path)

        part_map = np.zeros((256, 256, 3), dtype=np.uint8)
        for b in range(objects):
            part_map[230:250, 30 * b : 30 * b + 20] = (204, 204, 204 + b)
        for part, (top, left) in places.items():
            part_map[top : top + 30, left : left + 30] = COLORS[part][0]
        name = f"{label}/{number:06d}"
        save(draw(PARTS), f"test/{name}.png")
        save(Image.fromarray(part_map), f"test_part_map/{name}.png")
        for size in range(len(PARTS) + 1):
            for kept in combinations(PARTS, size):
                save(draw(kept), f"test_interventions/{name}/body_{'_'.join(sorted(kept))}.png")
        for b in range(objects):
            save(draw(PARTS, b), f"test_interventions/{name}/background_interventions/{b}.png")
        rows.append({"class_idx": label, "bg_objects": "".join(f"{7 * b}," for b in range(objects))})
    classes = [{"class_idx": i, "parts": dict(zip(PARTS, own, strict=True))} for i, own in enumerate(class_parts)]
    (root / "classes.json").write_text(json.dumps(classes))
    (root / "dataset_test.json").write_text(json.dumps(rows))
    return root


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    "vggss": write_vggss,
    "flickr-soundnet": write_flickr,
    "vggss-extended": lambda root, count: write_extended(root, write_vggss, "vggss", count),
    "vggss-negatives": write_vggss,
    "flickr-extended": lambda root, count: write_extended(root, write_flickr, "flickr", count),
    "is3": write_interactive,
    "vpo-ss": lambda root, count: write_interactive(root, count, 0, "vpo_ss", "visual_frames"),
    "vpo-ms": lambda root, count: write_interactive(root, count, 0, "vpo_ms", "visual_frames", "gray_masks"),
    "vggsound-duet": lambda root, count: write_duet(root, count // 2 + 1),
}
