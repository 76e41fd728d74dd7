"""Sample scenes that ship with the package: images with exact masks, sounds and spoken names of what is in them.

`python -m avgrad.scenes.samples --build` rebuilds the files, byte for byte with the same library versions.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avgrad.scenes.classes import CLASSES, class_index
from avgrad.scenes.images import Scene, draw_scene, scene_rng
from avgrad.scenes.sounds import SAMPLE_RATE, mix_sound
from avgrad.scenes.speech import spoken
from avgrad.scenes.video import draw_video

SAMPLES = Path(__file__).parent / "samples"
SIZE = 384
VIDEOS = "videos"  # folder of the sample videos
VIDEO_SIZE = 320

_JPEG_QUALITY = 92
_NUM_VIDEOS, _VIDEO_QUALITY = 2, 26
_OPUS_BITS_PER_SECOND = 24_000
# for viewing the masks; programs read the indices
_PALETTE = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))


class _Plan(NamedTuple):
    """A sample's title, its classes, and the index of its image in the series of images of these classes."""

    title: str
    classes: tuple[str, ...]
    draw: int


_PLANS = (
    _Plan("Band practice", ("dog", "drum", "guitar"), 5),
    _Plan("Before the storm", ("bird", "bee", "rain"), 13),
    _Plan("Emergency call", ("car", "siren", "telephone"), 23),
    _Plan("The last train", ("train", "bell", "clock"), 30),
    _Plan("The cat answers", ("cat", "piano", "telephone"), 18),
    _Plan("Mountain rescue", ("helicopter", "rain", "siren"), 32),
    _Plan("Early in the morning", ("frog", "bird"), 16),
    _Plan("Autumn concert", ("piano", "bell", "drum", "guitar"), 6),
)


class SampleObject(NamedTuple):
    """An object in a sample scene, and prompts for it.

    Attributes:
        object_class: name of its class in `CLASSES`.
        sound: its sound with noise and sometimes other sounds; Ogg Opus, 3 to 4 seconds, mono, 16 kHz.
        speech: a phrase with its name, by a voice held out of the bundled model's training; Ogg Opus, mono, 16 kHz.
        phrase: text of `speech`.
        text: a text prompt.
        masks: PNG file of the scene's masks: the pixels with `number` are this object's.
        number: 1 or more.
    """

    object_class: str
    sound: Path
    speech: Path
    phrase: str
    text: str
    masks: Path
    number: int

    def mask(self) -> NDArray[np.bool_]:
        """The visible pixels of the object: bool [H, W]."""
        with Image.open(self.masks) as labels:
            return np.asarray(np.asarray(labels) == self.number)


class Sample(NamedTuple):
    """A sample scene: a title, an image (JPEG file) and the objects in it."""

    title: str
    image: Path
    objects: tuple[SampleObject, ...]


class SampleVideo(NamedTuple):
    """A sample video, and the truth about it.

    Attributes:
        title: what is in it.
        video: MP4 file of 12 seconds.
        truth: .npz file with `labels`, `sounding` and `times`, see `avgrad.scenes.layouts.video.write_series`.
        classes: names of the classes of its objects.
    """

    title: str
    video: Path
    truth: Path
    classes: tuple[str, ...]


def samples() -> tuple[Sample, ...]:
    """The sample scenes; together they have every class."""
    index = json.loads((SAMPLES / "index.json").read_text(encoding="utf-8"))
    return tuple(
        Sample(
            sample["title"],
            SAMPLES / sample["image"],
            tuple(
                SampleObject(
                    object_class=obj["class"],
                    sound=SAMPLES / obj["sound"],
                    speech=SAMPLES / obj["speech"],
                    phrase=obj["phrase"],
                    text=obj["text"],
                    masks=SAMPLES / sample["masks"],
                    number=number,
                )
                for number, obj in enumerate(sample["objects"], start=1)
            ),
        )
        for sample in index
    )


def sample_videos() -> tuple[SampleVideo, ...]:
    """The sample videos: the first two of a series of synthetic videos."""
    index = json.loads((SAMPLES / VIDEOS / "videos.json").read_text(encoding="utf-8"))
    return tuple(
        SampleVideo(
            title=", ".join(entry["classes"]).capitalize(),
            video=SAMPLES / VIDEOS / entry["video"],
            truth=SAMPLES / VIDEOS / entry["truth"],
            classes=tuple(entry["classes"]),
        )
        for entry in index
    )


def draw_sample(index: int) -> Scene:
    """Draws sample `index` again, without JPEG compression."""
    plan = _PLANS[index]
    classes = [class_index(name) for name in plan.classes]
    return draw_scene(scene_rng("sample picture", index, plan.draw), SIZE, classes=classes)


def build(folder: Path) -> None:
    """Writes all samples to `folder`, replacing it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        partial.chmod(0o755)
        index = [_build_sample(partial, number) for number in range(len(_PLANS))]
        build_videos(partial / VIDEOS)
        (partial / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def build_videos(folder: Path) -> None:
    """Writes the sample videos to `folder`, whatever mini makes of them."""
    from avgrad.scenes.layouts.video import write_video

    entries = []
    for index in range(_NUM_VIDEOS):
        video = draw_video(scene_rng("sample video", 0, index), VIDEO_SIZE)
        entries.append(write_video(folder, f"video_{index}", video, _VIDEO_QUALITY, stems=False))
    (folder / "videos.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _build_sample(folder: Path, index: int) -> dict[str, object]:
    """Writes the files of one sample; returns its entry in the index."""
    title = _PLANS[index].title
    name = title.lower().replace(" ", "_")
    scene = draw_sample(index)
    Image.fromarray(scene.image).save(folder / f"{name}.jpg", quality=_JPEG_QUALITY)
    labels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    for number, mask in enumerate(scene.masks, start=1):
        labels[mask] = number
    image = Image.fromarray(labels).convert("P")
    image.putpalette([value for colour in _PALETTE for value in colour])
    image.save(folder / f"{name}_masks.png", optimize=True, bits=4)
    objects = [
        _build_object(folder, f"{name}_{CLASSES[object_class].name}", index, object_class)
        for object_class in scene.classes
    ]
    return {"title": title, "image": f"{name}.jpg", "masks": f"{name}_masks.png", "objects": objects}


def _build_object(folder: Path, name: str, index: int, object_class: int) -> dict[str, str]:
    rng = scene_rng("sample sound", index, object_class)
    others: Sequence[int] = rng.choice(len(CLASSES), int(rng.integers(0, 3)), replace=False).tolist()
    sound = mix_sound(object_class, rng, rng.uniform(3, 4), [other for other in others if other != object_class])
    phrase = spoken(object_class, scene_rng("sample speech", index, object_class), "heldout")
    for part, waveform in (("sound", sound), ("speech", phrase.waveform)):
        (folder / f"{name}_{part}.ogg").write_bytes(_opus(waveform))
    return {
        "class": CLASSES[object_class].name,
        "sound": f"{name}_sound.ogg",
        "speech": f"{name}_speech.ogg",
        "phrase": phrase.phrase,
        "text": f"the {CLASSES[object_class].synonyms[0]}",
    }


def _opus(waveform: NDArray[np.float32]) -> bytes:
    """Encodes [samples] at 16 kHz as Ogg Opus. libsndfile gives the stream a random number, so PyAV is used."""
    import av

    stream = io.BytesIO()
    # libsndfile takes no file of a single page, which a short phrase would be by default
    options = {"fflags": "+bitexact", "page_duration": "200000"}
    with av.open(stream, "w", format="ogg", options=options) as file:
        track = file.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", bit_rate=_OPUS_BITS_PER_SECOND)
        track.codec_context.flags |= av.codec.context.Flags.bitexact
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for piece in (frame, None):
            file.mux(track.encode(piece))
    return stream.getvalue()


def main() -> None:
    """Rebuilds the sample scenes."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m avgrad.scenes.samples", description=main.__doc__)
    parser.add_argument("--build", action="store_true", required=True, help="draw, synthesise and compress all samples")
    parser.parse_args()
    build(SAMPLES)


if __name__ == "__main__":
    main()
