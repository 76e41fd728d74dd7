"""Kinds of sources: which images they list, in which order, and where their bytes are."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avgrad import InputError, MediaError
from avgrad.bulk.item import Item
from avgrad.bulk.sources import is_collection, list_items
from avgrad.media import load_image
from tests.bulk_small import draw


def png(number: int) -> bytes:
    stream = io.BytesIO()
    draw(number).save(stream, "PNG")
    return stream.getvalue()


def is_image(item: Item, number: int) -> bool:
    """Whether an item's bytes are those of image `number`."""
    return load_image(item.open()).tobytes() == draw(number).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b.png", "a.PNG", "deep/er/c.png", "deep/.hidden.png", ".cache/d.png", "e.txt")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
    return tmp_path


def test_files_folders_and_globs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.PNG", "b.png", "deep/er/c.png"]
    assert [item.path for item in list_items([folder])] == [str(folder / name) for name in names]
    assert [item.path for item in list_items([folder / "**" / "*.png"])] == [str(folder / name) for name in names[1:]]
    monkeypatch.chdir(folder)
    items = list_items(["e.txt", "deep", "b.png"])  # a file is taken whatever its name
    assert [item.id for item in items] == ["e.txt", "deep/er/c.png", "b.png"]
    assert [item.path for item in items] == [str(folder / item.id) for item in items]
    assert [is_image(item, number) for item, number in zip(items, (5, 2, 0), strict=True)] == [True] * 3


def test_what_is_a_collection(folder: Path) -> None:
    (folder / "[x].png").write_bytes(png(0))
    for one in ("b.png", "missing.png", "[x].png"):
        assert not is_collection([str(folder / one)])
    for many in (["b.png", "e.txt"], ["deep"], ["*.png"]):
        assert is_collection([str(folder / name) for name in many])
    (folder / "t.csv").write_text("image\nb.png\n")
    assert is_collection([str(folder / "t.csv")])


def test_links_to_folders_are_not_followed(folder: Path) -> None:
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    assert len(list_items([folder])) == 3


def test_names_that_are_not_utf8(folder: Path) -> None:
    path = os.fsdecode(os.fsencode(folder) + b"/deep/\xff.png")
    Path(path).write_bytes(png(0))
    item = list_items([folder / "deep"])[1]
    assert item.path == path
    assert item.id.endswith("\ufffd.png")
    assert is_image(item, 0)


# ------------------------------------------------------------------ tables


def test_csv(folder: Path) -> None:
    with open(folder / "t.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text", "audio", "image_prompt", "other"])
        writer.writeheader()
        writer.writerow({"image": "b.png", "text": "a dog, barking", "audio": "x.wav", "image_prompt": "a.PNG"})
        writer.writerow({"image": str(folder / "deep/er/c.png"), "text": ""})
    one, two = list_items([folder / "t.csv"])
    assert (one.id, one.path) == ("b.png", str(folder / "b.png"))
    assert one.prompts == (
        ("audio", str(folder / "x.wav")), ("text", "a dog, barking"), ("image", str(folder / "a.PNG")),
    )  # fmt: skip
    assert (two.path, two.prompts) == (str(folder / "deep/er/c.png"), ())


def test_json_lines_and_parquet(folder: Path) -> None:
    rows = [
        {"id": "first", "image": "b.png", "text": ["a dog", "a cat"], "speech": None},
        {"id": "second", "image": "a.PNG", "text": [], "speech": "s.wav"},
    ]
    (folder / "t.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet", row_group_size=1)
    expected = [
        Item("first", str(folder / "b.png"), prompts=(("text", "a dog"), ("text", "a cat"))),
        Item("second", str(folder / "a.PNG"), prompts=(("speech", str(folder / "s.wav")),)),
    ]
    assert list_items([folder / "t.jsonl"]) == list_items([folder / "t.parquet"]) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"picture\na.png\n", "row 1 of t.csv has no path in its column 'image'"),
        ("t.csv", b"image\n\xff.png\n", "cannot be read"),
        ("t.jsonl", b'{"image": "a.png"}\nnonsense', "line 2 of t.jsonl is not JSON"),
        ("t.jsonl", b'["a.png"]', "line 1 of t.jsonl is not a JSON object"),
        ("t.jsonl", b'{"image": "a.png", "text": 3}', "has 3 in its column 'text'"),
        ("t.jsonl", b"", "has no image"),
        ("t.parquet", b"PAR1 and more", "damaged or no Parquet"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list_items([tmp_path / name])


# ------------------------------------------------------------------ tar files


def make_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in (("1.png", png(1)), ("1.txt", b"a dog"), ("../../2.PNG", png(2)), ("empty.png", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return path


def test_tar(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "shard.tar")
    items = list_items([path])
    assert [item.id for item in items] == [f"{path}/{name}" for name in ("1.png", "../../2.PNG", "empty.png")]
    assert is_image(items[0], 1) and is_image(items[1], 2)
    with pytest.raises(MediaError, match="empty"):
        load_image(items[2].open())
    assert {path.name for path in tmp_path.iterdir()} == {"shard.tar"}  # nothing is unpacked


def test_tar_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "shard.tar")
    item = list_items([path])[0]
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match=r"is compressed; an uncompressed .tar file is accepted"):
        list_items([tmp_path / "x.tar.gz"])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MediaError, match=r"is cut short: shard.tar has changed"):
        item.open()
    path.write_bytes(b"no tar file at all")
    with pytest.raises(InputError, match="damaged or no tar file"):
        list_items([path])


# ------------------------------------------------------------------ Hugging Face datasets


def make_dataset(folder: Path, compression: str | None = None) -> Path:
    """The layout that `Dataset.save_to_disk` of datasets 4 writes, with two Arrow files."""
    folder.mkdir()
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("label", pa.int64()), ("image", image)])
    files = []
    for number in range(2):
        rows = [{"label": 0, "image": {"bytes": png(2 * number + k), "path": f"{k}.png"}} for k in range(2)]
        rows.insert(1, {"label": 1, "image": {"bytes": None, "path": "beside.png"}})
        name = f"data-0000{number}-of-00002.arrow"
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, schema, options=options) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema), max_chunksize=2)
        files.append({"filename": name})
    (folder / "beside.png").write_bytes(png(5))
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_indices_data_files": None}))
    features = {"label": {"dtype": "int64", "_type": "Value"}, "image": {"_type": "Image"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def test_hugging_face_dataset(tmp_path: Path) -> None:
    path = make_dataset(tmp_path / "data")
    items = list_items([path])
    assert [item.id for item in items] == [f"{path}/{row}" for row in range(6)]
    assert [is_image(item, number) for item, number in zip(items, (0, 5, 1, 2, 5, 3), strict=True)] == [True] * 6


def test_hugging_face_datasets_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is compressed"):
        list_items([make_dataset(tmp_path / "small", "zstd")])
    path = make_dataset(tmp_path / "data")
    (path / "data-00001-of-00002.arrow").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="damaged or no Arrow file"):
        list_items([path])
    for name, content, message in (
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "outside of it"),
        ("state.json", "[]", "no JSON object"),
        ("state.json", "{}", "no dataset of one split"),
        ("dataset_info.json", '{"features": {"text": {"_type": "Value"}}}', "no column of images; it has text"),
    ):
        damaged = make_dataset(tmp_path / str(len(list(tmp_path.iterdir()))))
        (damaged / name).write_text(content)
        with pytest.raises(InputError, match=message):
            list_items([damaged])
