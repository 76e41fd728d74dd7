"""The parts of the page, without a browser."""

from __future__ import annotations

import gc
import io
import json
import math
import subprocess
import sys
import threading
import time
import weakref
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from avgrad.app.details import mask_image, python_code
from avgrad.app.heatmaps import Display, fitted, layer_alone, overlay, together
from avgrad.app.model_pool import ModelPool
from avgrad.app.prompts import verdicts
from avgrad.app.server import SETTINGS, arguments
from avgrad.app.session import MAX_SIDE, Answer, Question, Session, read_image, sample_image
from avgrad.drawing import BAR_HEIGHT, MAX_SECONDS, MEL_HEIGHT, PALETTE, WAVE_HEIGHT, WIDTH, draw_sound
from avgrad.errors import MediaError
from avgrad.localizer import Localizer
from avgrad.models.registry import load
from avgrad.scenes.samples import samples
from tests.browser import ROOT, wav

DRUM = Question("a drum", "text", b"a drum", source="'a drum'")
FROG = Question("the frog", "text", b"the frog", source="'the frog'")


@pytest.fixture(scope="module")
def model_pool() -> ModelPool:
    return ModelPool()


@pytest.fixture
def session(model_pool: ModelPool) -> Session:
    session = Session(model_pool)
    session.model("mini")
    return session


def found(session: Session, *questions: Question) -> Answer:
    answer, refused = session.localize(sample_image(0), questions)
    assert answer is not None
    assert not refused
    return answer


def with_scores(answer: Answer, scores: list[float]) -> Answer:
    return replace(answer, result=replace(answer.result, scores=torch.tensor(scores)))


def tone(seconds: float, rate: int = 16_000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 1000 * np.arange(round(seconds * rate)) / rate)


# ------------------------------------------------------------------ the command


def test_settings_by_hand_are_those_of_the_command() -> None:
    config = ConfigParser()
    config.optionxform = str  # type: ignore[assignment,method-assign]
    config.read(ROOT / ".streamlit" / "config.toml")
    by_hand = {f"{section}.{name}": json.loads(value) for section in config for name, value in config[section].items()}
    assert by_hand == SETTINGS
    assert "--server.address=localhost" in arguments(1234, "localhost", False)
    assert "--server.headless=true" in arguments(1234, "localhost", False)


def test_streamlit_is_imported_by_the_page_only() -> None:
    program = "import sys, avgrad.cli, avgrad.app.server, avgrad.app.session; print('streamlit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_streamlit_the_command_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['streamlit'] = None; sys.argv = ['avgrad', 'app']; import avgrad.cli as c; c.main()"
    )
    done = subprocess.run([sys.executable, "-c", program, "app"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "avgrad: the page needs streamlit: pip install 'avgrad[app]'\n"


# ------------------------------------------------------------------ sounds


def test_spectrogram_marks_the_clips() -> None:
    """A tone of 1 kHz for 5 s: clips at 0, 1 and 2 s, and what comes after the fourth second is dimmed."""
    drawn = draw_sound(wav(tone(5)), "tone.wav")
    assert drawn.duration == pytest.approx(5)
    assert drawn.clips == ((0.0, 2.0), (1.0, 3.0), (2.0, 4.0))
    pixels = np.asarray(Image.open(io.BytesIO(drawn.png)))
    assert pixels.shape == (WAVE_HEIGHT + MEL_HEIGHT + 3 * BAR_HEIGHT, WIDTH, 4)
    for number, (begin, end) in enumerate(drawn.clips):
        bar = np.flatnonzero(pixels[WAVE_HEIGHT + MEL_HEIGHT + number * BAR_HEIGHT + BAR_HEIGHT // 2, :, 3])
        assert (bar.min(), bar.max() + 1) == (round(begin / 5 * WIDTH), round(end / 5 * WIDTH))
    spectrogram = pixels[WAVE_HEIGHT : WAVE_HEIGHT + MEL_HEIGHT, :, :3].astype(float).sum(-1)
    brightest = spectrogram[:, 100].argmax()
    top = 15 + 27 * math.log(8) / math.log(6.4)  # 8 kHz on Slaney's mel scale, where 1 kHz is 15
    assert brightest == pytest.approx(MEL_HEIGHT * (1 - 15 / top), abs=3)
    assert spectrogram[:, 600].max() < 0.5 * spectrogram[:, 100].max()


@pytest.mark.parametrize("seconds", [0.03, 1.0, 45.0])
@pytest.mark.parametrize("rate", [4_000, 48_000, 192_000])
@pytest.mark.filterwarnings("error::UserWarning")  # torchaudio's, of mel bands without a frequency bin
def test_sounds_of_all_lengths_are_drawn(seconds: float, rate: int) -> None:
    drawn = draw_sound(wav(np.stack([tone(seconds, rate)] * 2, 1), rate), "tone.wav")
    assert drawn.duration == pytest.approx(seconds)
    assert all(end <= seconds for _, end in drawn.clips)


def test_of_long_sounds_the_clips_are_marked() -> None:
    seconds = 2 * MAX_SECONDS
    pixels = np.asarray(Image.open(io.BytesIO(draw_sound(wav(tone(seconds, 4_000), 4_000), "long.wav").png)))
    assert not pixels[: WAVE_HEIGHT + MEL_HEIGHT].any()
    starts = [
        np.flatnonzero(pixels[WAVE_HEIGHT + MEL_HEIGHT + number * BAR_HEIGHT + BAR_HEIGHT // 2, :, 3]).min()
        for number in range(3)
    ]
    assert starts == [0, pytest.approx(WIDTH / 3, abs=2), pytest.approx(WIDTH * 2 / 3, abs=3)]


def test_the_windows_are_the_models() -> None:
    pytest.importorskip("transformers")
    from transformers import PeAudioFeatureExtractor

    from avgrad.models.pe_av_audio import Waveforms

    drawn = draw_sound(wav(tone(25)), "tone.wav", Waveforms(PeAudioFeatureExtractor()).clip_times)
    assert drawn.clips == ((0.0, 10.0), (7.5, 17.5), (15.0, 25.0))


def test_bad_sounds_are_refused_by_name() -> None:
    for content, words in [(b"", "x.wav is empty"), (b"abc", "x.wav is"), (wav(np.zeros(9000)), "x.wav is silent")]:
        with pytest.raises(MediaError, match=words):
            draw_sound(content, "x.wav")


# ------------------------------------------------------------------ answers


def test_answers_are_the_localizers(session: Session) -> None:
    sound = samples()[0].objects[1].sound
    answer = found(session, Question("drum", "audio", sound.read_bytes()), FROG)
    localizer = Localizer(load("mini", dtype="auto"))
    localizer.set_image(samples()[0].image)
    result = localizer.localize(audio=sound, text="the frog")
    torch.testing.assert_close(answer.result.heatmaps, result.heatmaps, atol=1e-4, rtol=0)
    torch.testing.assert_close(answer.result.scores, result.scores, atol=1e-5, rtol=0)


def test_a_new_prompt_repeats_nothing(session: Session) -> None:
    """The image's forward pass runs once, each prompt is encoded once, and an unchanged question costs nothing."""
    image, calls = sample_image(0), []
    localizer = session._localizer
    assert localizer is not None
    set_image, encode = localizer.set_image, localizer.encode
    localizer.set_image = lambda *given: (calls.append("image"), set_image(*given))[1]  # type: ignore[method-assign]
    localizer.encode = lambda *given, **more: (calls.append(str(more) + str(given)), encode(*given, **more))[1]  # type: ignore[method-assign]
    first, _ = session.localize(image, [DRUM])
    again, _ = session.localize(image, [DRUM])
    session.localize(image, [DRUM, FROG])
    assert again is first
    assert calls.count("image") == 1
    assert sum("drum" in call for call in calls) == 1


def test_prompts_that_cannot_be_used_are_named(session: Session) -> None:
    answer, refused = session.localize(sample_image(0), [Question("broken.wav", "audio", b"RIFF"), DRUM])
    assert answer is not None
    assert answer.questions == (DRUM,)
    assert len(refused) == 1
    assert refused[0].startswith("broken.wav is")
    assert session.localize(sample_image(0), []) == (None, [])


def test_a_layer_alone_is_the_localizers(session: Session) -> None:
    answer = found(session, DRUM)
    alone = layer_alone(answer.result, 2)
    localizer = Localizer(load("mini", dtype="auto"), layers=[2])
    localizer.set_image(samples()[0].image)
    expected = localizer.localize(text="a drum")
    assert alone.layers == expected.layers
    torch.testing.assert_close(alone.heatmaps, expected.heatmaps, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone.layer_maps, expected.layer_maps, atol=1e-6, rtol=1e-4)


def test_compare_gives_the_methods(session: Session) -> None:
    answer = found(session, DRUM, FROG)
    other = session.compare(answer, 1, "cosine")
    assert other.method == "cosine"
    assert [prompt.label for prompt in other.prompts] == ["the frog"]
    assert session.compare(answer, 1, "cosine") is other


# ------------------------------------------------------------------ images and words


def test_overlays(session: Session) -> None:
    answer = found(session, DRUM, FROG)
    result, plain = answer.result, Display(outlined=False)
    np.testing.assert_array_equal(np.asarray(overlay(result, 1, plain)), np.asarray(result.overlay(1)))
    outlined = np.asarray(overlay(result, 1, Display()))
    edge = (outlined == 255).all(-1)
    heat = result.heatmaps[1].numpy()
    assert edge.any()
    assert heat[edge].min() < 0.5 < heat[edge].max()
    assert np.asarray(mask_image(result, 0, 0.7)).sum() == 255 * int(result.mask(0.7)[0].sum())
    small = fitted(result, 100)
    assert small.image.size == (100, 100)
    assert small.heatmaps.shape == (2, 100, 100)
    assert small.heatmaps.amin() >= 0
    assert small.heatmaps.amax() <= 1


def test_together_every_prompt_has_its_colour(session: Session) -> None:
    """At full opacity the hottest pixel of a prompt has its colour, where the others are cold."""
    result = found(session, DRUM, FROG).result
    heat = torch.zeros_like(result.heatmaps)
    heat[0, :100, :100], heat[1, 200:, 200:] = 1, 1
    result = replace(result)
    result.__dict__["heatmaps"] = heat  # where the property keeps them
    pixels = np.asarray(together(result, PALETTE, Display(1.0, outlined=False), [False, False]))
    assert tuple(pixels[50, 50]) == PALETTE[0]
    assert tuple(pixels[300, 300]) == PALETTE[1]
    faint = np.asarray(together(result, PALETTE, Display(1.0, outlined=True), [False, True]))
    assert np.abs(faint[300, 300].astype(int) - np.array(PALETTE[1])).max() > 20
    assert not (faint[190:, 190:] == PALETTE[1]).all(-1).any()


def test_verdicts_rise_with_the_score(session: Session) -> None:
    calibration = session.model("mini").calibration
    assert calibration is not None
    answer = found(session, DRUM, FROG)
    scores = [-0.5, 0.0, 0.2, 0.4, 0.9]
    verdicts_of = [verdicts(with_scores(answer, [score, 0.0]))[0] for score in scores]
    assert [verdict.probability for verdict in verdicts_of] == [
        pytest.approx(calibration.probability(score), abs=1e-6) for score in scores
    ]
    assert [verdict.absent for verdict in verdicts_of] == [calibration.probability(score) < 0.5 for score in scores]
    assert (verdicts_of[0].absent, verdicts_of[-1].absent) == (True, False)


def test_without_calibration_scores_are_compared(session: Session) -> None:
    other = SimpleNamespace(model=SimpleNamespace(calibration=None))
    answer = replace(with_scores(found(session, DRUM, FROG), [0.1, 0.3]), localizer=other)  # type: ignore[arg-type]
    assert [verdict.words for verdict in verdicts(answer)] == [
        "fits the image less well than the best of the texts (0.200 below it)",
        "fits the image best of the 2 texts",
    ]
    assert all(verdict.probability is None and not verdict.absent for verdict in verdicts(answer))


def test_the_python_code_gives_the_same(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a large image and files of one's own, and one layer alone."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(rng.integers(0, 256, (700, 1400, 3), dtype=np.uint8)).save("my 'image'.png")
    soundfile.write("noise.wav", rng.uniform(-0.5, 0.5, 40_000), 16_000)
    image = read_image(Path("my 'image'.png").read_bytes(), "my 'image'.png")
    assert image.shrunk
    assert image.image.size == (MAX_SIDE, MAX_SIDE // 2)
    noise = Question("noise.wav", "audio", Path("noise.wav").read_bytes(), "audio/wav", "'noise.wav'")
    answer, _ = session.localize(image, [noise, DRUM])
    assert answer is not None
    shown = layer_alone(answer.result, 3)
    names: dict[str, object] = {}
    exec(python_code(answer, Display(0.6, "viridis", 0.4), 3), names)
    again = names["result"]
    torch.testing.assert_close(again.heatmaps, shown.heatmaps, atol=1e-4, rtol=0)  # type: ignore[attr-defined]
    assert (np.asarray(names["mask"]) == shown.mask(0.4).numpy()).mean() > 0.9999
    made, expected = np.asarray(Image.open("overlay.png")), np.asarray(shown.overlay(0, 0.6, "viridis"))
    assert np.abs(made.astype(int) - expected).max() <= 2


# ------------------------------------------------------------------ the model pool


def test_one_computation_at_a_time(model_pool: ModelPool) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def compute() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    threads = [threading.Thread(target=model_pool.work, args=(compute,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_model_is_shared_and_then_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded once for all sessions, kept while one uses it, released when the last one changes to another."""
    loads: list[str] = []

    def loading(name: str, dtype: str) -> object:
        loads.append(name)
        return load("mini")

    monkeypatch.setattr("avgrad.app.model_pool.load", loading)
    model_pool = ModelPool()
    first, second = Session(model_pool), Session(model_pool)
    assert first.model("large") is second.model("large")
    assert loads == ["large"]
    old = weakref.ref(first.model("large"))
    first.model("mini")
    assert old() is second.model("large")
    second.model("other")
    gc.collect()
    assert old() is None
    bundled = first.model("mini")
    assert Session(model_pool).model("mini") is bundled
    assert loads == ["large", "mini", "other"]


def test_a_download_blocks_no_other_session(monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = threading.Event()

    def loading(name: str, dtype: str) -> object:
        if name == "remote":
            assert downloaded.wait(60)
        return load("mini")

    monkeypatch.setattr("avgrad.app.model_pool.load", loading)
    model_pool = ModelPool()
    Session(model_pool).model("mini")
    waiting = threading.Thread(target=Session(model_pool).model, args=("remote",))
    waiting.start()
    other = Session(model_pool)
    other.model("mini")
    found(other, DRUM)
    assert waiting.is_alive()
    downloaded.set()
    waiting.join()
