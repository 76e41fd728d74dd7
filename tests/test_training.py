"""The training as it is run: real processes, one of them killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import avgrad
from avgrad.models.imagebind import ImageBind
from training.held_out import HeldOut

OPTIONS = (
    "--images 8 --close-ups 8 --prompts 8 --vision-steps 6 --audio-steps 2 --joint-steps 4 --batch 8 "
    "--save-every 2 --evaluate-every 6 --held-out 16"
)


def _start(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "training.train", "--out", str(out), *OPTIONS.split(), "--workers", "2"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = _start(whole)
    assert run.wait(600) == 0, run.stderr and run.stderr.read().decode()
    broken.mkdir()
    shutil.copytree(whole / "pool", broken / "pool")
    run = _start(broken)
    while run.poll() is None and not (broken / "joint.pt").exists():
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait(60) == -signal.SIGKILL
    assert not (broken / "mini.safetensors").exists()
    run = _start(broken)
    assert run.wait(600) == 0
    assert (broken / "mini.safetensors").read_bytes() == (whole / "mini.safetensors").read_bytes()
    figures = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in figures] == [("vision", 6), ("audio", 2), ("joint", 4)]
    assert 0 <= figures[-1]["sound_iou"] <= 1
    model = avgrad.load("mini", checkpoint=whole / "mini.safetensors")
    assert isinstance(model, ImageBind)
    assert model.encode_text(["a dog", "zebra crossing"]).shape == (2, 128)


@pytest.mark.slow
def test_the_bundled_model_finds_objects() -> None:
    """Figures of 100 scenes that training never drew; `python -m eval.scenes` measures more closely."""
    model = avgrad.load("mini")
    assert isinstance(model, ImageBind)
    assert sum(parameter.numel() for parameter in model.parameters()) < 6e6
    figures = HeldOut(100, model.config.image_size).figures(model)
    print(figures)
    assert min(figures["sound_iou"], figures["speech_iou"], figures["text_iou"]) > 0.6
    assert min(figures["sound_auc"], figures["speech_auc"], figures["text_auc"]) > 0.98
    assert torch.isfinite(model.vision.blocks[0].weight).all()
