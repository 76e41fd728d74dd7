"""Damaged files of every format: each gives a result or a MediaError, soon, and the interpreter lives on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sound_files import FFMPEG, LIBSNDFILE, encode, tones, without_length, write
from test_media_image import gradient, save

ROOT = Path(__file__).parents[1]
DAMAGES_PER_FORMAT = 16
pytestmark = pytest.mark.slow
SLOWEST_SECONDS = 5.0  # of processor time: other programs do not count

# A decoder that crashes takes its process with it, so the damaged files are opened in one of their own.
PROGRAM = """
import json, sys, time
from pathlib import Path
from avgrad.errors import MediaError
from avgrad.encoders.audio import log_mel_clips
from avgrad.media import load_image, open_audio
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(json.dumps({"begun": path.name}), flush=True)
    for source in (path, path.read_bytes()):
        begin = time.process_time()
        try:
            if path.name.startswith("image"):
                image = load_image(source)
                assert image.mode == "RGB" and image.tobytes()
            else:
                with open_audio(source) as audio:
                    clips = log_mel_clips(audio)
                assert clips.shape == (3, 1, 128, 204) and clips.isfinite().all()
            outcome = "result"
        except MediaError as error:
            outcome = str(error)
        except BaseException as error:
            outcome = f"WRONG {type(error).__name__}: {error}"
        seconds = time.process_time() - begin
        print(json.dumps({"name": path.name, "outcome": outcome, "seconds": seconds}), flush=True)
"""


def whole_files() -> dict[str, bytes]:
    """One good file of each format."""
    pixels = Image.fromarray(gradient(160, 120))
    files = {f"image_{kind}": save(pixels, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")}
    files["image_PROGRESSIVE"] = save(pixels, "JPEG", progressive=True)
    files["image_PALETTE"] = save(pixels.quantize(16), "PNG", transparency=3)
    waveform = tones(3, 48000)
    files |= {f"sound_{name}": write(waveform, 48000, name) for name in LIBSNDFILE}
    files |= {f"sound_{name}": encode(waveform, 48000, name) for name in FFMPEG}
    files["sound_mp3_streamed"] = without_length(files["sound_mp3"])
    return files


def damage(content: bytes, index: int, generator: np.random.Generator) -> bytes:
    """Cut a file, or flip bits anywhere or among its headers; each fourth damage is of one kind."""
    damaged = bytearray(content)
    if index % 4 in (1, 3):
        places = generator.integers(0, len(content), int(generator.integers(1, 40)))
        for place in places:
            damaged[place] ^= 1 << int(generator.integers(8))
    if index % 4 == 2:
        for place in generator.integers(4, min(400, len(content)), int(generator.integers(1, 12))):
            damaged[place] ^= int(generator.integers(1, 256))
    if index % 4 in (0, 3):
        del damaged[int(generator.integers(1, len(content))) :]
    return bytes(damaged)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("damaged")
    generator = np.random.default_rng(20)
    for name, content in whole_files().items():
        (folder / f"{name}_whole").write_bytes(content)
        for index in range(DAMAGES_PER_FORMAT):
            (folder / f"{name}_{index:02}").write_bytes(damage(content, index, generator))
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)  # against hanging
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"the interpreter died at {lines[-1]}: {result.stderr[-2000:]}"
    return [line for line in lines if "name" in line]


def test_there_are_many(outcomes: list[dict[str, object]]) -> None:
    assert len({line["name"] for line in outcomes if not str(line["name"]).endswith("whole")}) >= 200


def test_whole_files_give_results(outcomes: list[dict[str, object]]) -> None:
    assert {line["outcome"] for line in outcomes if str(line["name"]).endswith("whole")} == {"result"}


def test_result_or_media_error(outcomes: list[dict[str, object]]) -> None:
    assert [line for line in outcomes if str(line["outcome"]).startswith("WRONG")] == []
    refused = [str(line["outcome"]) for line in outcomes if line["outcome"] != "result"]
    assert len(refused) > 50
    assert all("accepted" in message and "\n" not in message for message in refused)


def test_none_takes_long(outcomes: list[dict[str, object]]) -> None:
    assert [line for line in outcomes if float(str(line["seconds"])) > SLOWEST_SECONDS] == []
