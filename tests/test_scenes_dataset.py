"""Data sets of synthetic scenes have the layouts of the benchmarks, and their tasks run on them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import avgrad
from avgrad.scenes import CLASSES, DatasetError, list_layouts, write_dataset
from avgrad.scenes.layouts.ade20k import CSV_NAME, decode_annotation, encode_annotation
from eval.__main__ import benchmark
from eval.runner import Settings
from eval.task import get_task, list_tasks

BY_ID = {object_class.ade_class_id: object_class.name for object_class in CLASSES}


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / CSV_NAME).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("datasets")
    return {
        prompt: write_dataset(folder / prompt, f"ade20k-{prompt}", 32, 7, size=128, progress=False)
        for prompt in ("sound", "speech")
    }


def test_annotation_round_trip() -> None:
    ids = np.arange(6656).reshape(64, 104)
    encoded = encode_annotation(ids, np.full(ids.shape, 3))
    assert encoded.dtype == np.uint8
    np.testing.assert_array_equal(decode_annotation(encoded), ids)
    np.testing.assert_array_equal(encoded[..., 2], 3)


@pytest.mark.parametrize("prompt", ["sound", "speech"])
def test_layout(datasets: dict[str, Path], prompt: str) -> None:
    folder = datasets[prompt]
    rows = _rows(folder)
    column = {"sound": "vggsound_file", "speech": "speech_prompt_file"}[prompt]
    assert list(rows[0]) == ["image_location", column, "ade_class_id", "timing", "class_name"]
    assert len(rows) == 32
    assert sorted(row["class_name"] for row in rows) == sorted(2 * [object_class.name for object_class in CLASSES])
    assert sorted(path.name for path in folder.iterdir()) == ["annotations", "audio", "frames", CSV_NAME]
    for row in rows:
        frame = Image.open(folder / "frames" / row["image_location"])
        assert (frame.format, frame.size, frame.mode) == ("JPEG", (128, 128), "RGB")
        stem = Path(row["image_location"]).stem
        annotation = np.asarray(Image.open(folder / "annotations" / f"{stem}_seg.png"))
        ids = decode_annotation(annotation)
        assert int(row["ade_class_id"]) in np.unique(ids)
        assert set(np.unique(ids)) - {0} <= set(BY_ID)
        assert BY_ID[int(row["ade_class_id"])] == row["class_name"]
        assert 0.01 < np.mean(ids == int(row["ade_class_id"])) < 0.2
        waveform, rate = soundfile.read(folder / "audio" / row[column])
        assert rate == 16_000
        assert waveform.ndim == 1
        seconds = waveform.size / rate
        if prompt == "sound":
            assert 3 <= seconds <= 6
            assert row["timing"] == ""
        else:
            start, end = json.loads(row["timing"])
            assert 0 <= start < end <= seconds + 0.001


def test_prefix_is_stable_and_images_do_not_depend_on_the_prompt(datasets: dict[str, Path], tmp_path: Path) -> None:
    shorter = write_dataset(tmp_path / "shorter", "ade20k-sound", 5, 7, size=128, progress=False)
    files = sorted(path.relative_to(shorter) for path in shorter.rglob("*") if path.is_file())
    assert len(files) == 16
    for file in files:
        longer = (datasets["sound"] / file).read_bytes()
        assert (
            longer == (shorter / file).read_bytes()
            if file.name != CSV_NAME
            else longer.startswith((shorter / file).read_bytes())
        )
    for row in _rows(shorter):
        frame = f"frames/{row['image_location']}"
        assert (shorter / frame).read_bytes() == (datasets["speech"] / frame).read_bytes()


def test_other_seed_other_scenes(datasets: dict[str, Path], tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", "ade20k-sound", 4, 8, size=128, progress=False)
    frames = {path.read_bytes() for path in (datasets["sound"] / "frames").iterdir()}
    assert len(frames) == 32
    assert not frames & {path.read_bytes() for path in (other / "frames").iterdir()}


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="exists already"):
        write_dataset(tmp_path, n=1)


@pytest.mark.parametrize("arguments", [{"n": 0}, {"seed": -1}, {"size": 8}])
def test_wrong_requests_are_refused(tmp_path: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(DatasetError, match="a data set needs"):
        write_dataset(tmp_path / "new", **{"n": 1, "seed": 0, **arguments})
    with pytest.raises(DatasetError, match="there is no layout 'smell'; expected one of ade20k-sound, "):
        write_dataset(tmp_path / "new", "smell")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises((OSError, soundfile.LibsndfileError)):
            write_dataset(tmp_path / "new", n=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


LAYOUT_OF = {
    "vggss-extended": "vggss",
    "vggss-negatives": "vggss",
    "vggsound-duet": "vggss",
    "flickr-extended": "flickr-soundnet",
    "video-scenes": "video",
}
SLOW = ("funnybirds", "perturbation")  # whose models are asked again
TASKS = [name for name in list_tasks() if get_task(name).needs_data]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("twins")
    return {name: write_dataset(folder / name, name, 4, 3, size=64, progress=False) for name in list_layouts()}


@pytest.fixture(scope="module")
def mini() -> Any:
    return avgrad.load("mini")


def test_every_task_has_a_twin() -> None:
    assert sorted({LAYOUT_OF.get(name, name) for name in TASKS}) == list_layouts()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in TASKS])
def test_a_twin_is_evaluated(name: str, twins: dict[str, Path], mini: Any, tmp_path: Path) -> None:
    task = get_task(name)(twins[LAYOUT_OF.get(name, name)], limit=4)
    assert task.problems == []
    benchmark(mini, task, tmp_path, Settings(("legrad", "raw_attention"), batch_size=2), {}, workers=1)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["data"]["evaluated_items"] == 4
    assert results["problems"]["counts"] == {}
    for row in results["results"]:
        assert all(row[figure] is None or 0 <= row[figure] <= 1 for figure in task.columns)


@pytest.mark.parametrize("name", [name for name in list_layouts() if not name.startswith("ade20k")])
def test_a_longer_twin_starts_with_the_shorter_one(name: str, twins: dict[str, Path], tmp_path: Path) -> None:
    shorter = write_dataset(tmp_path / "shorter", name, 2, 3, size=64, progress=False)
    files = [path.relative_to(shorter) for path in shorter.rglob("*") if path.suffix not in (".json", ".csv", ".mat")]
    # video encoders do not promise the same bytes
    files = [path for path in files if (shorter / path).is_file() and path.suffix != ".mp4"]
    assert files or name == "imagenet-segmentation"
    for file in files:
        assert (twins[name] / file).read_bytes() == (shorter / file).read_bytes()
