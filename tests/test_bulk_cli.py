"""`avgrad localize` over collections and `avgrad find`, as a user runs them: real processes, killed and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import avgrad
from avgrad.cli import main
from tests.bulk_small import contents, make_collection

ROOT = str(Path(__file__).parents[1])
ARGUMENTS = ["--text", "a dog", "--model", "mini", "--size", "40", "--batch-size", "2", "--shard-size", "5"]


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "avgrad.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str], count: int = 1) -> None:
    while len(list(folder.glob(pattern))) < count and process.poll() is None:
        time.sleep(0.01)


def test_a_folder_is_localized_and_searched(tmp_path: Path) -> None:
    make_collection(tmp_path / "images")
    code, out, err = ended(start("localize", "images", *ARGUMENTS, "--out", "run", "--overlays", "1", cwd=tmp_path))
    assert code == 0, err
    assert "12 of 14 images, written to run" in out
    assert "100%" in err and "row 6: broken.jpg is a damaged JPEG image" in err
    assert len(list((tmp_path / "run" / "results").glob("*/overlay_0_a_dog.jpg"))) == 12
    assert len(avgrad.read_run(tmp_path / "run")) == 14
    code, out, err = ended(start("find", "run", "--text", "a dog", "--top", "3", cwd=tmp_path))
    assert code == 0, err
    best = avgrad.find(tmp_path / "run", text="a dog", top=3, explain=False)
    lines = [line for line in out.splitlines() if "images/" in line]
    assert [line.split("│")[4].strip() for line in lines] == [hit.id for hit in best]
    page = (tmp_path / "avgrad_find" / "index.html").read_text()
    assert page.count("data:image/jpeg") == 3


@pytest.mark.slow
def test_interrupted_it_ends_at_once_and_goes_on(tmp_path: Path) -> None:
    make_collection(tmp_path / "images", 300)
    process = start("localize", "images", *ARGUMENTS, "--out", "run", cwd=tmp_path)
    wait_for("run/shards/*.parquet", tmp_path, process, 3)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130
    assert "Traceback" not in err
    done = len(avgrad.read_run(tmp_path / "run"))
    assert 15 <= done < 302
    code, out, err = ended(start("localize", "images", *ARGUMENTS, "--out", "run", cwd=tmp_path))
    assert code == 0, err
    assert "300 of 302 images" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["localize", "images", "--method", "legrad", "--method", "gradcam"], "a run has one --method"),
        (["localize", "images", "--layers-grid"], "--layers-grid is for one image"),
        (["localize", "images", "--refine", "guided"], "--refine changes overlays and heatmaps"),
        (["localize", "images", "missing", "--model", "mini"], "source 'missing' does not exist"),
        (["localize", "images/one/00000.png", "--text", "a", "--ray", "local"], "--ray is for many images"),
        (["find", "images", "--text", "a dog"], "images holds no run"),
        (["find", "images"], "there is no prompt"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    make_collection(tmp_path / "images", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["avgrad", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    make_collection(tmp_path / "images", 1000)
    code, _, err = ended(start("localize", "images", *ARGUMENTS, "--out", "whole", cwd=tmp_path))
    assert code == 0, err
    kills = 0
    while True:
        process = start(
            "localize", "images", *ARGUMENTS, "--out", "killed", "--workers", str(1 + kills % 4), cwd=tmp_path
        )
        if kills < 10:
            wait_for("killed/shards/*.parquet", tmp_path, process, 15 * kills + 5)
            if process.poll() is None:
                process.kill()
                kills += 1
                ended(process)
                for path in (tmp_path / "killed" / "shards").glob("*.parquet"):
                    assert path.read_bytes() == (tmp_path / "whole" / "shards" / path.name).read_bytes()
                continue
        code, _, err = ended(process)
        assert code == 0, err
        break
    assert kills == 10
    assert contents(avgrad.read_run(tmp_path / "killed")) == contents(avgrad.read_run(tmp_path / "whole"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_collection(tmp_path: Path) -> None:
    """The peak of 3,000 images is at most 60 MB above that of 300."""
    make_collection(tmp_path / "images", 300)
    (tmp_path / "many.csv").write_text(
        "image\n" + "\n".join(f"images/{('one', 'two')[n % 2]}/{n % 300:05d}.png" for n in range(3000))
    )
    code = (
        "import resource, sys; from avgrad.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for source in ("images", "many.csv"):
        arguments = ["localize", source, *ARGUMENTS[:-2], "--shard-size", "64", "--out", f"run_{source}"]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            timeout=900,
        )
        peaks.append(int(done.stdout.split("peak")[1]))
    assert peaks[1] - peaks[0] < 60_000
