"""Reading the published layout of ADE20K Sound- and Speech-Prompted, with everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from eval_layouts import write_vggss
from eval_small import row, small_model, write_data, write_item, write_table
from PIL import ExifTags, Image
from torchvision import transforms

from avgrad.encoders.audio import LogMelClips, log_mel_clips
from avgrad.encoders.image import center_crop
from avgrad.media import open_audio
from eval.metrics.prompted_segmentation import Array
from eval.reading import as_stored
from eval.runner import Settings, evaluate
from eval.task import DataError, Inputs
from eval.tasks.ade20k import Ade20kSound, Ade20kSpeech
from eval.tasks.vggss import VggSs

GENERATOR = np.random.default_rng


def test_reads_the_published_layout(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_item(tmp_path, name, 1259, GENERATOR(0))
    (tmp_path / "frames" / "sub").mkdir()
    (tmp_path / "annotations" / "sub").mkdir()
    (tmp_path / "frames" / "c.jpg").rename(tmp_path / "frames" / "sub" / "c.jpg")
    (tmp_path / "annotations" / "c_seg.png").rename(tmp_path / "annotations" / "sub" / "c_seg.png")
    rows = [
        row("a", "sound", 1259),
        row("a", "sound", 0),  # class 0 is none
        row("a", "sound", 1259, vggsound_file=""),  # a row of other prompts
        row("a", "sound", 1259, vggsound_file="nan"),
        row("b", "sound", 1259, ade_class_id="1259.0"),
        row("c", "sound", 300, image_location="sub/c.jpg"),
    ]
    write_table(tmp_path, "sound", rows)
    data = Ade20kSound(tmp_path)
    assert [(item.row, item.image, item.class_id, item.class_name, item.prompt) for item in data.items] == [
        (1, "a.jpg", 1259, "cat", "a.wav"),
        (5, "b.jpg", 1259, "cat", "b.wav"),
        (6, "sub/c.jpg", 300, "dog", "c.wav"),
    ]
    assert (data.num_rows, data.problems, data.side) == (3, [], 224)
    limited = Ade20kSound(tmp_path, limit=2)
    assert [item.row for item in limited.items] == [1, 5]
    assert limited.fingerprint != data.fingerprint


def test_the_folder_around_it_will_do(tmp_path: Path) -> None:
    write_data(tmp_path / "ADE20KSpeechPrompted", "speech", 1)
    assert len(Ade20kSpeech(tmp_path).items) == 1


@pytest.mark.parametrize("size", [(640, 480), (333, 517), (224, 224), (101, 100), (50, 1000)])
def test_center_crop_is_that_of_torchvision(size: tuple[int, int]) -> None:
    image = Image.fromarray(GENERATOR(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for resampling in ("bicubic", "bilinear", "nearest"):
        resize = transforms.Resize(224, transforms.InterpolationMode[resampling.upper()])
        expected = transforms.CenterCrop(224)(resize(image))
        square = center_crop(image, 224, resampling)
        assert np.array_equal(np.asarray(square), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_taken_as_stored_whatever_exif_says(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(GENERATOR(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(path, exif=exif)
    with Image.open(path) as stored:
        assert np.array_equal(np.asarray(as_stored(path)), np.asarray(stored.convert("RGB")))


def test_a_sample_holds_image_mask_and_both_timings(tmp_path: Path) -> None:
    write_item(tmp_path, "a", 1259, GENERATOR(2), seconds=3.0)
    write_table(tmp_path, "speech", [row("a", "speech", 1259, timing="[1.5, 2.95]")])
    data, model = Ade20kSpeech(tmp_path), small_model()
    sample = data.load(data.items[0], Inputs.of(model))
    assert torch.equal(sample.pixels, model.pixels(Image.open(tmp_path / "frames" / "a.jpg")))
    labels = Image.open(tmp_path / "annotations" / "a_seg.png").resize((298, 224), Image.Resampling.NEAREST)
    red, green, _ = np.moveaxis(np.asarray(labels).astype(int), -1, 0)
    expected: Array = (red // 10 * 256 + green == 1259)[:, 37 : 37 + 224]
    assert expected.any() and np.array_equal(sample.truth["mask"], expected)
    with open_audio(tmp_path / "audio" / "a.wav") as audio:
        assert torch.equal(sample.prompts[0], log_mel_clips(audio))
        assert torch.equal(sample.prompts[1], log_mel_clips(audio, (1.3, 3.0)))  # 0.2 s more, but not beyond the end


def test_a_model_of_another_size_sees_the_same_part(tmp_path: Path) -> None:
    data = Ade20kSound(write_data(tmp_path, "sound", 1))
    preprocess = small_model(image_size=112).preprocess
    sample = data.load(data.items[0], Inputs(preprocess, LogMelClips()))
    assert sample.pixels.shape == (3, 112, 112)
    square = center_crop(Image.open(tmp_path / "frames" / "scene 0.jpg"), 224)
    assert torch.equal(sample.pixels, preprocess(square))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timing": ""}, "timing is ''; JSON"),
        ({"timing": "[0.5]"}, "timing is '[0.5]'"),
        ({"timing": "[0.6, 0.3]"}, "timing is"),
        ({"timing": '{"start": 1}'}, "timing is"),
        ({"timing": "[NaN, 1]"}, "timing is"),
        ({"ade_class_id": "dog"}, "ade_class_id is 'dog'; a whole number"),
        ({"ade_class_id": ""}, "ade_class_id is ''"),
        ({"ade_class_id": "2.5"}, "ade_class_id is '2.5'"),
        ({"image_location": "a.png"}, "image_location is 'a.png'; a name that ends in .jpg"),
        ({"image_location": ""}, "image_location is ''"),
        ({"image_location": "/etc/a.jpg"}, "image_location is '/etc/a.jpg'; a path inside the data set's folder"),
        ({"image_location": "../../frames/a.jpg"}, "image_location is '../../frames/a.jpg'; a path inside"),
        ({"image_location": "x/../a.jpg"}, "a path inside the data set's folder is expected"),
        ({"image_location": "C:\\a.jpg"}, "a path inside the data set's folder is expected"),
        ({"image_location": "a\0.jpg"}, "a name in UTF-8 without control characters is expected"),
        ({"image_location": "a\udcff.jpg"}, "image_location is 'a\\udcff.jpg'; a name in UTF-8"),
        ({"speech_prompt_file": "x/.."}, "speech_prompt_file is '..'; a path inside"),
        ({"speech_prompt_file": "\udcff.wav"}, "a name in UTF-8"),
        ({"class_name": "\udcff"}, "the class's name is '\\udcff'"),
        ({"ade_class_id": "1e300"}, "a whole number from 0 to 6655"),
    ],
)
def test_unreadable_rows_are_reported(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write_item(tmp_path, "a", 300, GENERATOR(3))
    write_table(tmp_path, "speech", [row("a", "speech", 300, **changes), row("a", "speech", 300)])
    data = Ade20kSpeech(tmp_path)
    assert (len(data.items), data.num_rows) == (1, 2)
    (problem,) = data.problems
    assert (problem.row, problem.kind) == (1, "unreadable row")
    assert message in problem.message


@pytest.mark.parametrize("missing", ["frames/b.jpg", "annotations/b_seg.png", "audio/b.wav"])
def test_missing_files_are_reported(tmp_path: Path, missing: str) -> None:
    for name in ("a", "b"):
        write_item(tmp_path, name, 300, GENERATOR(4))
    (tmp_path / missing).unlink()
    write_table(tmp_path, "sound", [row("a", "sound", 300), row("b", "sound", 300)])
    data = Ade20kSound(tmp_path)
    assert [item.row for item in data.items] == [1]
    assert [(p.row, p.kind) for p in data.problems] == [(2, "missing file")]
    assert str(tmp_path / missing) in data.problems[0].message


def test_a_name_that_is_too_long_is_reported(tmp_path: Path) -> None:
    write_item(tmp_path, "a", 300, GENERATOR(4))
    write_table(tmp_path, "sound", [row("a" * 5000, "sound", 300), row("a", "sound", 300)])
    data = Ade20kSound(tmp_path)
    (problem,) = data.problems
    assert (problem.row, problem.kind) == (1, "missing file")
    assert "File name too long" in problem.message and len(problem.message) < 300
    with pytest.raises(DataError, match=r"--strict accepts none"):
        evaluate(small_model(), data, tmp_path / "run", Settings(("cosine",)), {}, 1, strict=True)


def spoiled(root: Path) -> Path:
    """Data with one problem of each kind that shows on loading, in the rows 2 to 5, and a good row on each side."""
    for name in "abcdef":
        write_item(root, name, 300, GENERATOR(ord(name)))
    image = (root / "frames" / "b.jpg").read_bytes()
    (root / "frames" / "b.jpg").write_bytes(image[: len(image) // 2])
    (root / "audio" / "c.wav").write_bytes(b"not a sound at all")
    Image.new("RGB", (60, 80)).save(root / "annotations" / "d_seg.png")
    Image.new("RGB", (80, 60)).save(root / "annotations" / "e_seg.png")
    write_table(root, "sound", [row(name, "sound", 300) for name in "abcdef"])
    return root


def test_what_shows_on_loading_is_reported_and_the_rest_is_evaluated(tmp_path: Path) -> None:
    data = Ade20kSound(spoiled(tmp_path / "data"))
    notices: list[str] = []
    folder, _ = evaluate(small_model(), data, tmp_path / "run", Settings(("cosine",)), {}, 1, notice=notices.append)
    records = folder.measures()
    assert [(problem.row, problem.kind) for problem in records.problems] == [
        (2, "unreadable file"),
        (3, "unreadable file"),
        (4, "unreadable file"),
        (5, "no pixels"),
    ]
    assert "b.jpg" in records.problems[0].message and "c.wav" in records.problems[1].message
    assert "80 x 60" in records.problems[2].message and "60 x 80" in records.problems[2].message
    assert notices == [str(problem) for problem in records.problems]
    assert records.field("row").tolist() == [
        1,
        5,
        6,
    ]  # one without pixels counts, as in the original


def test_strict_makes_problems_fatal(tmp_path: Path) -> None:
    data = Ade20kSound(spoiled(tmp_path / "data"))
    with pytest.raises(DataError, match=r"row 2: unreadable file: b\.jpg.*--strict"):
        evaluate(small_model(), data, tmp_path / "run", Settings(("cosine",)), {}, 1, strict=True)
    (tmp_path / "data" / "audio" / "a.wav").unlink()
    data = Ade20kSound(tmp_path / "data")
    with pytest.raises(DataError, match=r"row 1: missing file: .*a\.wav' does not exist; --strict accepts none"):
        evaluate(small_model(), data, tmp_path / "run", Settings(("cosine",)), {}, 1, strict=True)


def test_data_that_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no prompted_segmentation\.csv; the folder of ADE20KSoundPrompted"):
        Ade20kSound(tmp_path)
    table = tmp_path / "prompted_segmentation.csv"
    table.write_text("image_location,ade_class_id\na.jpg,3\n")
    with pytest.raises(DataError, match="has no column vggsound_file"):
        Ade20kSound(tmp_path)
    with pytest.raises(DataError, match="has no column speech_prompt_file"):
        Ade20kSpeech(tmp_path)
    table.write_text("image_location,ade_class_id,vggsound_file\na.jpg,3,a.wav\n")
    with pytest.raises(
        DataError, match=r"no usable row for ade20k-sound \(1 have problems, the first in row 1: missing"
    ):
        Ade20kSound(tmp_path)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        Ade20kSound(tmp_path)


def test_duplicate_rows_are_reported_and_count_as_in_the_original(tmp_path: Path) -> None:
    write_item(tmp_path, "a", 300, GENERATOR(3))
    write_table(tmp_path, "sound", [row("a", "sound", 300), row("a", "sound", 1259), row("a", "sound", 300)])
    data = Ade20kSound(tmp_path)
    assert [item.row for item in data.items] == [1, 2, 3]
    (problem,) = data.problems
    assert str(problem) == "row 3: duplicate row: the same as row 1; it counts again, as in the original"


def test_duplicate_rows_of_other_benchmarks_are_left_out(tmp_path: Path) -> None:
    root = write_vggss(tmp_path, 2)
    table = root / "metadata" / "vggss_test.csv"
    table.write_text(2 * table.read_text())
    data = VggSs(root)
    assert (data.num_rows, [item.row for item in data.items]) == (4, [1, 2])
    assert [(p.row, p.kind, p.message) for p in data.problems] == [
        (3, "duplicate row", "the same as row 1; it is left out"),
        (4, "duplicate row", "the same as row 2; it is left out"),
    ]
