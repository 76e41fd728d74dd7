"""Where golden values are taken from: the folder that AVGRAD_GOLDEN names, then tests/golden."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden.files import VARIABLE, Golden
from safetensors import safe_open
from safetensors.torch import load_file, save_file

OWN = Path(__file__).parent / "golden"


def test_a_chosen_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tmp_path / "chosen"
    (chosen / "benchmarks").mkdir(parents=True)
    (chosen / "benchmarks" / "ssl_metrics.npz").touch()
    save_file({"bias": torch.ones(3)}, chosen / "siglip_small.weights.safetensors")
    monkeypatch.setenv(VARIABLE, str(chosen))
    golden = Golden(tmp_path)
    assert golden("benchmarks/ssl_metrics.npz") == chosen / "benchmarks" / "ssl_metrics.npz"
    assert golden("benchmarks/avs_metrics.npz") == OWN / "benchmarks" / "avs_metrics.npz"
    assert golden.weights("siglip_small").keys() == {"bias"}
    assert len(golden.weights("openai_small")) > 1
    with pytest.raises(FileNotFoundError, match=r"nothing.npz is in none of .*chosen, .*golden"):
        golden("nothing.npz")


def test_samples_belong_to_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, chosen, samples = (tmp_path / name for name in ("scratch", "folder/chosen", "folder/samples"))
    for folder in (scratch, chosen, samples):
        folder.mkdir(parents=True)
    monkeypatch.setenv(VARIABLE, str(chosen))
    assert Golden(scratch).samples == scratch  # the chosen folder lacks the values that belong to its samples
    assert len(list(scratch.iterdir())) == 6
    (chosen / "imagebind_media.io.safetensors").touch()
    assert Golden(scratch).samples == samples


def test_a_folder_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(NotADirectoryError, match=rf"{VARIABLE}=.*nowhere is not a folder"):
        Golden(tmp_path)


def test_an_altered_value_fails(tmp_path: Path) -> None:
    name = "imagebind_media.io.safetensors"
    with safe_open(OWN / name, "pt") as file:
        metadata = file.metadata()
    values = load_file(OWN / name)
    values["dog_audio"][1, 0, 64, 100] += 1e-4
    save_file(values, tmp_path / name, metadata)
    command = "-m pytest -q -p no:cacheprovider tests/test_encoder_audio.py -k reference"
    result = subprocess.run(
        [sys.executable, *command.split()],
        cwd=Path(__file__).parents[1],
        env={**os.environ, VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 failed, 6 passed" in result.stdout
    assert "FAILED tests/test_encoder_audio.py::test_reference_spectrograms[dog]" in result.stdout
