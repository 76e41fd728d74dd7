"""The Video tab: where the sound of a video is, moment by moment, and each moment large."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from avgrad.app.heatmaps import jpeg
from avgrad.app.model_pool import BUNDLED, ModelPool
from avgrad.app.session import message
from avgrad.app.style import css, plain
from avgrad.drawing import PALETTE
from avgrad.engine.attribute import normalized, normalizes_first
from avgrad.errors import InputError
from avgrad.localizer import Localizer
from avgrad.media.video import FrameReader, Video, frames_at, open_video, upright
from avgrad.models.model import Model
from avgrad.overlay import blend
from avgrad.scenes.samples import sample_videos
from avgrad.video.heatmap_video import OPACITY, strengths_of
from avgrad.video.localize import Moments, localize_video
from avgrad.video.moment import OWN_SOUND
from avgrad.video.save import Parts, save_moments
from avgrad.video.timeline import Timeline

MAX_SECONDS = 600.0  # of a video on the page
FPS = 4.0
_BATCH = 8  # frames; between batches other visitors get their answers
_SIDE, _CHART_HEIGHT = 640, 150  # pixels
_KEPT = 2  # answers of a session
_SOURCES = ("Samples", "Upload")
_TYPES = ("mp4", "mov", "m4v", "webm", "mkv", "avi", "gif")


@dataclass(frozen=True, eq=False)
class VideoAnswer:
    """What was found in a video.

    Attributes:
        video: the video.
        model: what found it.
        prompts: "label" and "modality" of each.
        timeline: scores and maps over time.
        files: by name `heatmap.mp4`, `timeline.json` and `timeline.parquet`.
        note: why it ended before the end of the video; empty where it did not.
        seconds: what it took.
    """

    video: Video
    model: Model
    prompts: list[dict[str, str]]
    timeline: Timeline
    files: dict[str, bytes]
    note: str
    seconds: float


def show_video(pool: ModelPool, model: Model) -> None:
    """The whole tab.

    Args:
        pool: the server's.
        model: the session's.
    """
    left, right = st.columns([6, 5], gap="large", vertical_alignment="bottom")
    with left:
        chosen = _choose()
    with right:
        words = st.text_input("Also look for", placeholder="words, if you like", key="video_words").strip()
    if chosen is None:
        return
    source, name = chosen
    if not (isinstance(source, Path) or model.name != BUNDLED):
        st.info(
            "The bundled model knows only drawings like the samples: on other videos its heatmaps and scores mean "
            "nothing. For real ones choose another model in the sidebar."
        )
    answers: OrderedDict[Any, VideoAnswer] = st.session_state.setdefault("video_answers", OrderedDict())
    content = source if isinstance(source, bytes) else source.read_bytes()
    key = hashlib.sha256(content).hexdigest(), words, model.name
    if key not in answers:
        try:
            answers[key] = _localize(pool, model, content, name, words)
        except InputError as error:
            st.error(plain(message(error, name)), icon=":material/error:")
            return
        st.session_state["moment"] = _loudest(answers[key].timeline)
        while len(answers) > _KEPT:
            answers.popitem(last=False)
    _show_answer(answers[key])


def _choose() -> tuple[Path | bytes, str] | None:
    """The chosen video and its name: a sample's path, or an upload's bytes."""
    source = st.segmented_control(
        "Source of the video",
        _SOURCES,
        default=_SOURCES[0],
        required=True,
        label_visibility="collapsed",
        key="video_source",
    )
    if source == "Samples":
        samples = {sample.title: sample for sample in sample_videos()}
        title = st.segmented_control(
            "Sample videos",
            list(samples),
            default=next(iter(samples)),
            required=True,
            label_visibility="collapsed",
            key="video_sample",
        )
        assert title is not None
        return samples[title].video, f"{title}.mp4"
    file = st.file_uploader("Upload a video", _TYPES, key="video_file")
    return None if file is None else (file.getvalue(), file.name)


# ------------------------------------------------------------------ the work


def _localize(pool: ModelPool, model: Model, content: bytes, name: str, words: str) -> VideoAnswer:
    """Locates the own sound of a video and the words; shows the progress, and lets others go first between batches.

    Raises:
        InputError: the video cannot be used.
    """
    video = open_video(content, name=name)
    if video.duration > MAX_SECONDS:
        raise InputError(
            f"{name} lasts {video.duration / 60:.0f} minutes; up to {MAX_SECONDS / 60:.0f} are accepted here, and any "
            "length by avgrad localize"
        )
    own = video.num_tracks > 0 and "audio" in model.modalities
    if not own and not words:
        what = "has no sound" if not video.num_tracks else f"has sound, which {model.name} does not take"
        raise InputError(f"{name} {what}; write what to look for")
    started = time.perf_counter()
    moments = pool.work(
        localize_video,
        video,
        model=Localizer(model, keep=False),
        text=words or None,
        own_sound=own,
        fps=FPS,
        batch_size=_BATCH,
    )
    prompts = [{"label": OWN_SOUND, "modality": "audio"}] if own else []
    prompts += [{"label": words, "modality": "text"}] if words else []
    bar = st.progress(0.0, "Looking …")
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        share = min(done / max(moments.count, 1), 1.0)
        left = (time.perf_counter() - started) * (1 - share) / share
        bar.progress(share, f"Looking … {left:.0f} s left" if share < 1 else "Writing …")

    with moments, tempfile.TemporaryDirectory(prefix="avgrad-") as name_of_folder:
        folder = Path(name_of_folder)
        about = {"model": model.name, "name": name, "fps": FPS, "prompts": prompts}
        timeline, _ = save_moments(
            folder,
            video,
            _one_by_one(pool, moments),
            prompts,
            about,
            parts=Parts(folder, ""),
            model=model,
            side=_SIDE,
            progress=progress,
        )
        assert timeline is not None
        files = {file: (folder / file).read_bytes() for file in ("heatmap.mp4", "timeline.json", "timeline.parquet")}
    bar.empty()
    return VideoAnswer(video, model, prompts, timeline, files, moments.note, time.perf_counter() - started)


def _one_by_one(pool: ModelPool, moments: Moments) -> Iterator[Any]:
    """The moments, each asked for on the server's worker, in turns with what other visitors ask for."""
    while True:
        moment = pool.work(next, moments, None)
        if moment is None:
            return
        yield moment


def _loudest(timeline: Timeline) -> float:
    """The time of the highest score."""
    scores = np.nan_to_num(timeline.scores, nan=-np.inf).max(1)
    return float(timeline.times[scores.argmax()])


# ------------------------------------------------------------------ the screen


@st.fragment
def _show_answer(answer: VideoAnswer) -> None:
    """The player, the scores under it, and one moment large; its controls rerun this part of the page only."""
    left, right = st.columns([6, 5], gap="large")
    times = answer.timeline.times
    with left:
        with st.container(key="player"):
            st.video(answer.files["heatmap.mp4"], format="video/mp4")
        st.vega_lite_chart(
            _chart(answer, st.session_state.get("moment", 0.0)),
            width="stretch",
            on_select=_pick,
            selection_mode=["pick"],
            key="timeline",
        )
        st.html(_legend(answer))
    with right:
        if len(times) > 1:
            st.select_slider("Moment", times.tolist(), key="moment", format_func=lambda value: f"{value:.2f} s")
        _show_moment(answer, int(np.abs(times - st.session_state.get("moment", 0.0)).argmin()))
    if answer.note:
        st.warning(plain(answer.note), icon=":material/broken_image:")
    with st.container(horizontal=True):
        stem = Path(answer.video.name).stem
        st.download_button("Heatmap video", answer.files["heatmap.mp4"], f"{stem}_heatmap.mp4", "video/mp4")
        st.download_button("Table (JSON)", answer.files["timeline.json"], f"{stem}.json", "application/json")
        st.download_button("Table (Parquet)", answer.files["timeline.parquet"], f"{stem}.parquet")


def _pick() -> None:
    """Goes to the moment that was clicked in the chart."""
    picked = st.session_state["timeline"]["selection"].get("pick", [])
    if picked:
        st.session_state["moment"] = float(picked[0]["time"])


def _chart(answer: VideoAnswer, moment: float) -> dict[str, Any]:
    """The scores over time for vega-lite, as wide as the player: both have the same time axis."""
    rows = json.loads(answer.files["timeline.json"])["moments"]
    values = [{name: row[name] for name in ("time", "prompt", "score", "silent")} for row in rows]
    labels = [prompt["label"] for prompt in answer.prompts]
    colors = [css(PALETTE[index % len(PALETTE)]) for index in range(len(labels))]
    time_axis = {
        "field": "time",
        "type": "quantitative",
        "scale": {"domain": [0, answer.video.duration], "nice": False},
        "axis": {"title": None, "grid": False, "format": "~s", "labelFlush": True},
    }
    score_axis = {
        "field": "score",
        "type": "quantitative",
        "scale": {"zero": False},
        # inside the plot, which would else begin to the right of the player
        "axis": {
            "title": None,
            "labelAlign": "left",
            "labelPadding": -6,
            "domain": False,
            "ticks": False,
            "tickCount": 4,
        },
    }
    color = {
        "field": "prompt",
        "type": "nominal",
        "scale": {"domain": labels, "range": colors},
        "legend": None,
    }
    points = {
        "name": "moments",
        "mark": {"type": "point", "opacity": 0, "size": 200},
        "encoding": {"x": time_axis, "y": score_axis, "tooltip": [{"field": "time"}, {"field": "score"}]},
    }
    return {
        "data": {"values": values},
        "height": _CHART_HEIGHT,
        "padding": 0,
        "params": [
            {
                "name": "pick",
                "select": {"type": "point", "on": "click", "nearest": True, "fields": ["time"]},
                "views": ["moments"],
            }
        ],
        "layer": [
            {
                "transform": [{"filter": "datum.silent"}],
                "mark": {"type": "rule", "opacity": 0.12, "strokeWidth": 8},
                "encoding": {"x": time_axis},
            },
            {
                "data": {"values": [{"time": moment}]},
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": "#888"},
                "encoding": {"x": time_axis},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2.2},
                "encoding": {"x": time_axis, "y": score_axis, "color": color},
            },
            points,
        ],
        "config": {"view": {"stroke": None}},
    }


def _legend(answer: VideoAnswer) -> str:
    labels = [prompt["label"] for prompt in answer.prompts]
    entries = [
        f'<li style="--prompt: {css(PALETTE[index % len(PALETTE)])}"><i></i>{escape(label)}</li>'
        for index, label in enumerate(labels)
    ]
    silent = " Shaded: silence." if answer.timeline.silent.any() else ""
    words = f"The score over time; click on it to see that moment.{silent} {escape(answer.model.name)} took"
    return f'<ul class="legend">{"".join(entries)}</ul><p class="faint">{words} {answer.seconds:.1f} s.</p>'


def _show_moment(answer: VideoAnswer, index: int) -> None:
    """One analysed frame with the heatmap of each prompt."""
    timeline = answer.timeline
    with FrameReader(answer.video, float(timeline.times[index])) as reader:
        frame = next((frame for _, frame in frames_at(reader, FPS, round(timeline.times[index] * FPS))), None)
        if frame is None:
            return
        image = upright(frame, answer.video)
    image.thumbnail((_SIDE, _SIDE))
    size = image.height, image.width
    heatmaps = normalized(timeline.heat(index)[None], size, normalizes_first(answer.model.vision))[0].numpy()
    strengths = strengths_of(_tensor(timeline.presence[index]))
    for prompt, heat, strength, score in zip(
        answer.prompts, heatmaps, strengths.tolist(), timeline.scores[index].tolist(), strict=True
    ):
        label, at = prompt["label"], f"at {timeline.times[index]:.2f} s"
        words = f"{label}, {at}: silent" if np.isnan(score) else f"{label}, {at}: score {score:.3f}"
        with st.container(key=f"moment_{answer.prompts.index(prompt)}"):
            st.image(jpeg(blend(image, heat, OPACITY * strength)), width="stretch", alt=f"Heatmap of {label} {at}")
            st.html(f'<p class="faint">{escape(words)}</p>')


def _tensor(values: Sequence[float] | np.ndarray) -> Any:
    import torch

    return torch.as_tensor(np.asarray(values))
