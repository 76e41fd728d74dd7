"""What `avgrad localize` writes for a video: the heatmap video, the timeline, and an interrupted run that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import avgrad
from avgrad.cli import app
from avgrad.errors import InputError
from avgrad.media import open_video
from avgrad.media.video import FrameReader, upright
from avgrad.video.heatmap_video import Heat, HeatmapVideo, strengths_of
from avgrad.video.timeline import Timeline, waveform
from tests.video_files import encode_video, moving_square, rotated, tone

FILES = {"heatmap.mp4", "heatmaps.npz", "timeline.json", "timeline.parquet", "timeline.png"}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["localize", *map(str, arguments)], catch_exceptions=True)


def decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    video = open_video(path)
    with FrameReader(video) as reader:
        pairs = [(time, np.asarray(upright(frame, video))) for time, frame in reader]
    return [time for time, _ in pairs], [image for _, image in pairs]


def ramp(height: int, width: int) -> torch.Tensor:
    """A raw map that is hot on the right, `[1, height, width]`."""
    return torch.linspace(0, 1, width).expand(1, height, width)


# ------------------------------------------------------------------ the heatmap video


@pytest.mark.parametrize("kind", ["mp4", "webm", "avi", "mov"])
def test_heatmap_video_keeps_times_and_sound(kind: str, tmp_path: Path) -> None:
    data = encode_video(moving_square(20, 66, 50), kind, sounds=[tone(2)])
    video = open_video(data)
    movie = HeatmapVideo(tmp_path / "heatmap.mp4", video, 1)
    for number in range(8):
        movie.add(Heat(number / 4, ramp(4, 5), torch.ones(1), False))
    movie.finish()
    with av.open(str(tmp_path / "heatmap.mp4")) as container:
        image, sound = container.streams.video[0], container.streams.audio[0]
        assert (image.codec_context.name, image.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (image.width, image.height) == (66, 50)
        assert sound.codec_context.name == ("mp3float" if kind == "avi" else "aac")
        assert float(sound.duration * sound.time_base) == pytest.approx(2, abs=0.1)
    times, images = decoded(tmp_path / "heatmap.mp4")
    with FrameReader(video) as reader:
        assert times == pytest.approx([time for time, _ in reader], abs=0.002)
    for painted, plain in zip(images, decoded_bytes(data), strict=True):
        left, right = (slice(None), slice(0, 6)), (slice(None), slice(-6, None))
        assert np.abs(painted[left].astype(int) - plain[left]).mean() < 30  # cold places stay as they are
        hot = painted[right].astype(int).mean((0, 1))
        assert hot[0] > hot[2] + 60  # and hot ones turn red


def decoded_bytes(data: bytes) -> list[np.ndarray]:
    video = open_video(data)
    with FrameReader(video) as reader:
        return [np.asarray(upright(frame, video)) for _, frame in reader]


def test_heatmaps_are_interpolated_between_moments(tmp_path: Path) -> None:
    gray = np.full((21, 48, 64, 3), 128, np.uint8)
    video = open_video(encode_video(gray))
    movie = HeatmapVideo(tmp_path / "heatmap.mp4", video, 2)  # in one color, which grows with the heat
    for number, maps in enumerate((torch.zeros(1, 4, 4), ramp(4, 4), torch.zeros(1, 4, 4))):
        movie.add(Heat(float(number), torch.cat([maps, torch.zeros(1, 4, 4)]), torch.ones(2), False))
    movie.finish()
    _, images = decoded(tmp_path / "heatmap.mp4")
    change = np.array([np.abs(image[:, -8:].astype(int) - 128).mean() for image in images])
    assert change[0] < 3 and change[20] < 3 and change[10] > 40
    assert (np.diff(change[:11]) > -2).all() and change[10] > change[7] + 5 > change[4] + 10
    assert change[6:10] == pytest.approx(change[14:10:-1], abs=5)


def test_rotated_odd_and_large_videos(tmp_path: Path) -> None:
    data = rotated(encode_video(moving_square(3, 70, 50)), 1)
    video = open_video(data)
    movie = HeatmapVideo(tmp_path / "heatmap.mp4", video, 1, side=35)
    movie.add(Heat(0.0, torch.zeros(1, 4, 4), torch.ones(1), False))
    movie.finish()
    _, images = decoded(tmp_path / "heatmap.mp4")
    assert [image.shape for image in images] == [(36, 24, 3)] * 3  # even
    small = np.asarray(Image.fromarray(decoded_bytes(data)[0]).resize((24, 36)))
    assert np.abs(images[0].astype(int) - small).mean() < 15


def test_several_prompts_have_a_color_each(tmp_path: Path) -> None:
    gray = np.full((2, 48, 64, 3), 128, np.uint8)
    movie = HeatmapVideo(tmp_path / "heatmap.mp4", open_video(encode_video(gray)), 2)
    maps = torch.cat([ramp(4, 8), ramp(4, 8).flip(-1)])
    movie.add(Heat(0.0, maps, torch.ones(2), False))
    movie.finish()
    image = decoded(tmp_path / "heatmap.mp4")[1][0].astype(int)
    right, left = image[:, -6:].mean((0, 1)), image[:, :6].mean((0, 1))
    assert right[0] > right[2] + 60  # orange
    assert left[2] > left[0] + 60  # blue


def test_improbable_heatmaps_are_faint() -> None:
    strengths = strengths_of(torch.tensor([1.0, 0.5, 0.0, float("nan")]))
    assert strengths.tolist() == pytest.approx([1.0, 0.6, 0.2, 1.0])


def test_errors_of_the_thread_reach_the_caller(tmp_path: Path) -> None:
    movie = HeatmapVideo(tmp_path / "none" / "heatmap.mp4", open_video(encode_video(moving_square(3))), 1)
    with pytest.raises(OSError):
        for number in range(100):
            movie.add(Heat(number / 10, torch.zeros(1, 2, 2), torch.ones(1), False))
            time.sleep(0.01)
        movie.finish()


# ------------------------------------------------------------------ the timeline


def test_waveform() -> None:
    sound = tone(2)
    sound[:, 48_000:] = 0
    ranges = waveform(open_video(encode_video(moving_square(20), "mov", sounds=[sound])))
    assert ranges.shape == (2, 2000)
    assert ranges[0, 100:900].min() == pytest.approx(-0.3, abs=0.02)
    assert ranges[1, 100:900].max() == pytest.approx(0.3, abs=0.02)
    assert np.abs(ranges[:, 1010:]).max() < 0.01


def test_files_of_a_video(tmp_path: Path) -> None:
    sound = tone(3)
    sound[:, 19_200:] = 0
    source = tmp_path / "clip.mov"
    source.write_bytes(encode_video(moving_square(30), "mov", sounds=[sound]))
    out = tmp_path / "out"
    result = run(source, "--model", "mini", "--size", 48, "--text", "a bell", "--own-sound", "--out", out)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == FILES
    rows = pq.read_table(out / "timeline.parquet").to_pylist()
    document = json.loads((out / "timeline.json").read_text())
    assert [(row["time"], row["prompt"]) for row in rows[:3]] == [(0, "own sound"), (0, "a bell"), (0.25, "own sound")]
    assert len(rows) == len(document["moments"]) == 24
    assert document["model"] == "mini" and document["fps"] == 4 and document["smoothing"] == 0
    moments = list(avgrad.localize_video(source, model="mini", size=48, text="a bell", own_sound=True))
    timeline = Timeline.read(out / "heatmaps.npz")
    for index, moment in enumerate(moments):
        own, text = rows[2 * index : 2 * index + 2]
        assert own["silent"] == moment.silent == (moment.time >= 1.5) and not text["silent"]
        assert (own["score"] is None) == (own["peak_x"] is None) == (own["box_x0"] is None) == moment.silent
        assert text["score"] == pytest.approx(float(moment.scores[1]), abs=1e-4)
        assert (text["peak_x"], text["peak_y"]) == moment.peak(1)
        x0, y0, x1, y1 = moment.boxes(0.5)[1][0]
        assert [text[f"box_{name}"] for name in ("x0", "y0", "x1", "y1")] == [x0, y0, x1, y1]
        assert torch.allclose(timeline.heat(index), moment.maps, rtol=1e-3, atol=1e-9)
    with Image.open(out / "timeline.png") as image:
        assert image.size == (1280, 360)
    again = run(source, "--model", "mini", "--size", 48, "--text", "a bell", "--own-sound", "--out", out)
    assert again.exit_code == 0 and "holds these results already" in again.stderr


def test_mistakes(tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    silent.write_bytes(encode_video(moving_square(5)))
    for arguments, words in (
        ((silent,), "has no sound track; give --text WORDS"),
        ((silent, "--text", "a bell", "--method", "legrad", "--method", "gradcam"), "one method at a time"),
        ((silent, "--text", "a bell", "--fps", "0"), "fps=0.0 is not a number"),
    ):
        result = run(*arguments, "--model", "mini", "--out", tmp_path / "out")
        assert isinstance(result.exception, InputError) and words in str(result.exception)
    data = encode_video(moving_square(30), "mkv", sounds=[tone(3)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) // 2])
    result = run(cut, "--model", "mini", "--size", 48, "--out", tmp_path / "cut")
    assert result.exit_code == 0
    assert "is cut short: it ends at" in result.stderr or "is damaged after" in result.stderr
    assert 2 <= len(json.loads((tmp_path / "cut" / "timeline.json").read_text())["moments"]) < 12


@pytest.mark.slow
def test_ctrl_c_leaves_a_playable_part_and_the_same_command_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "clip.mp4", tmp_path / "out"
    source.write_bytes(encode_video(moving_square(160), sounds=[tone(16)]))
    command = [sys.executable, "-m", "avgrad.cli", "localize", str(source), "--model", "mini", "--size", "32"]
    command += ["--fps", "20", "--out", str(out)]
    # a shell may have told the processes that it started in the background to ignore the signal
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=restore)
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/000001.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130, words
    assert "stopped:" in words and "the same command goes on" in words
    times, _ = decoded(out / "heatmap.mp4")
    assert 1 < times[-1] < 15.8
    before = sum(len(np.load(path)["times"]) for path in out.glob("parts/*.npz"))
    assert 128 <= before < 320
    assert not (out / "timeline.json").exists()
    finished = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300)
    assert finished.returncode == 0
    assert f"going on after the {before} frames" in finished.stderr
    assert {path.name for path in out.iterdir()} == FILES
    assert decoded(out / "heatmap.mp4")[0][-1] == pytest.approx(15.9, abs=0.01)
    timeline = Timeline.read(out / "heatmaps.npz")
    assert np.allclose(timeline.times, np.arange(320) / 20)
    assert not any(path.name.endswith(".part") for path in out.iterdir())


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    from avgrad.video.save import Parts

    def part() -> Timeline:
        ones = np.ones((2, 1))
        return Timeline(
            np.arange(2.0), np.zeros(2, bool), ones, ones, ones[..., None, None], ones[..., None], ones[..., None]
        )

    first = Parts(tmp_path, "a")
    first.add(part())
    assert Parts(tmp_path, "a").count == 2
    assert Parts(tmp_path, "b").count == 0
    assert Parts(tmp_path, "a").count == 0
    assert os.listdir(tmp_path / "parts") == ["key"]
