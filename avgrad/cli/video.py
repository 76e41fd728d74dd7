"""`avgrad localize` of a video."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from avgrad.cli import note
from avgrad.errors import InputError, MediaWarning, out_of_memory

if TYPE_CHECKING:
    from avgrad.cli.localize import Request
    from avgrad.video.localize import Moments


def localize_video_file(request: Request, *, fps: float, track: int, smoothing: float, own_sound: bool | None) -> None:
    """Locates the own sound of a video, or given prompts; goes on with what an interrupted run left.

    Args:
        request: what was asked for.
        fps, track, smoothing, own_sound: as in `avgrad.localize_video`.
    """
    from avgrad.media.video import open_video
    from avgrad.video.localize import localize_video
    from avgrad.video.moment import OWN_SOUND
    from avgrad.video.save import Parts, fingerprint

    method, *more = request.methods
    if more:
        raise InputError(f"--method {more[0]} is one too many: a video is located by one method at a time")
    video = open_video(request.source)
    own = not request.has_prompts if own_sound is None else own_sound
    if own and not video.num_tracks:
        raise InputError(
            f"{video.name} has no sound track; give --text WORDS, --audio FILE, --speech FILE or --image FILE"
        )
    model = request.load(own)
    localizer = request.localizer(model, method)
    prompts = localizer.encode(**request.prompts)
    options: dict[str, Any] = {"fps": fps, "track": track, "smoothing": smoothing, "own_sound": own}
    about = {
        "model": model.name,
        "checkpoint": request.checkpoint and str(request.checkpoint),
        "dtype": request.dtype,
        "method": method,
        **request.settings,
        **{name: str(value) for name, value in request.methods[method].items()},
        **options,
    }
    key = fingerprint(video, prompts, about)
    if _is_complete(request.out, key):
        note(f"{request.out} holds these results already")
        return
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        parts = Parts(request.out, key)
        if parts.count:
            note(f"going on after the {parts.count} frames that were located before")
        moments = localize_video(video, model=localizer, prompts=prompts, first=parts.count, **options)
        names = [{"label": OWN_SOUND, "modality": "audio"}] if own else []
        names += [{"label": prompt.label, "modality": prompt.modality} for prompt in prompts]
        content = {"key": key, "name": video.name, "duration": round(video.duration, 3), **about, "prompts": names}
        with moments, warnings.catch_warnings():
            warnings.simplefilter("ignore", MediaWarning)  # said below
            _save(request, moments, names, content, parts, track)
    except OSError as error:
        if out_of_memory(error):
            raise
        raise InputError(f"--out {request.out} cannot be written ({error.strerror or error})") from None


def _is_complete(out: Path, key: str) -> bool:
    try:
        return bool(json.loads((out / "timeline.json").read_text(encoding="utf-8")).get("key") == key)
    except (OSError, ValueError, AttributeError):
        return False


def _save(
    request: Request, moments: Moments, names: list[dict[str, str]], about: dict[str, Any], parts: Any, track: int
) -> None:
    from tqdm import tqdm

    from avgrad.video.save import save_moments

    out, model = request.out, moments.model
    with tqdm(total=parts.count + moments.count, unit="frame", desc=moments.video.name, disable=None) as bar:
        timeline, seconds = save_moments(
            out, moments.video, moments, names, about, parts=parts, model=model, track=track, progress=bar.update
        )
    if timeline is None:
        shown = f"{out / 'heatmap.mp4'} shows the first {seconds:.1f} s" if seconds else "nothing was rendered yet"
        note(f"stopped: {shown}; the same command goes on from there")
        sys.stdout.flush()
        raise typer.Exit(130)
    if moments.note:
        note(moments.note)
    _print(timeline, names, f"{model.name}, {about['method']}")
    print(f"\nwritten to {out}")


def _print(timeline: Any, names: list[dict[str, str]], title: str) -> None:
    import numpy as np
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title)
    for column in ("prompt", "by", "highest score", "at", "silent"):
        table.add_column(column, justify="left" if column in ("prompt", "by") else "right")
    for index, prompt in enumerate(names):
        scores = timeline.scores[:, index]
        known = ~np.isnan(scores)
        best = int(np.nanargmax(scores)) if known.any() else None
        table.add_row(
            escape(prompt["label"]),
            prompt["modality"],
            "" if best is None else f"{scores[best]:.3f}",
            "" if best is None else f"{timeline.times[best]:.2f} s",
            f"{100 * (1 - known.mean()):.0f} %",
        )
    Console().print(table)
