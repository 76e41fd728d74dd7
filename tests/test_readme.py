"""The README's Python examples run as they stand, in a folder of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avgrad.bulk import localize_all
from avgrad.localizer import Localizer
from avgrad.scenes.samples import samples

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)


def run(example: str, folder: Path) -> str:
    (folder / "example.py").write_text(example, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library(tmp_path: Path) -> None:
    assert run(EXAMPLES[0], tmp_path).count("Localization(") == 8  # one for each sample
    assert (tmp_path / "out" / "result.json").is_file()


@pytest.mark.parametrize("word", ["describe", "localize_video"])
def test_further_examples(word: str, tmp_path: Path) -> None:
    (example,) = (example for example in EXAMPLES[1:] if word in example)
    run(example, tmp_path)


@pytest.mark.slow
def test_many_images(tmp_path: Path) -> None:
    """A run over the samples stands in for one of the reader's own."""
    (example,) = (example for example in EXAMPLES[1:] if "read_run" in example)
    (tmp_path / "PHOTOS").mkdir()
    for scene in samples():
        shutil.copy(scene.image, tmp_path / "PHOTOS")
    shutil.copy(samples()[0].objects[0].sound, tmp_path / "siren.wav")
    localize_all(Localizer("mini"), [tmp_path / "PHOTOS"], tmp_path / "RUN", text="a dog")
    before = "import avgrad\nlocalizer = avgrad.Localizer('mini')\n"
    out = run(before + example.replace('"PHOTOS/"], "RUN"', '"PHOTOS/"], "AGAIN"'), tmp_path)
    assert len(out.splitlines()) == len(samples())  # hits of find
    assert (tmp_path / "AGAIN" / "shards").is_dir()
