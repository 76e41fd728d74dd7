"""A video in, one result per analysed frame out: decoded ahead, encoded and explained in batches, in order."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avgrad.engine.view import ViTView
from avgrad.errors import InputError, MediaError, MediaWarning, UnsupportedModelError
from avgrad.localization import Localization, versions
from avgrad.localizer import Localizer
from avgrad.media.video import FrameReader, Video, frames_at, open_video, ticks, upright
from avgrad.models.model import Model
from avgrad.prompts import Prompt
from avgrad.settings import at_least
from avgrad.video.ahead import Ahead
from avgrad.video.moment import OWN_SOUND, Moment
from avgrad.video.smoothing import smoothed
from avgrad.video.sound import SILENCE, SoundWindows

if TYPE_CHECKING:
    from PIL import Image

    from avgrad.localizer import AudioSource, ImageSource

    VideoSource = str | os.PathLike[str] | bytes | Video

MIN_FPS, MAX_FPS = 0.001, 1000.0
_WORKERS = 2  # threads that convert and preprocess frames
_AHEAD_BYTES = 200_000_000  # of decoded frames that wait, about


@dataclass(frozen=True, eq=False)
class _Frame:
    """One analysed frame, decoded.

    Attributes:
        time: in seconds.
        image: upright, RGB.
        pixels: preprocessed, `[3, h, w]`.
        sound: of the window around it, what the audio tower takes; None where it is silent or not asked for. Frames
            with the same window share it.
    """

    time: float
    image: Image.Image
    pixels: Tensor
    sound: Tensor | None


_Decoded = tuple[float, "Future[tuple[Image.Image, Tensor]]", "Future[Tensor] | None"]  # time, image and pixels, sound


class _Pipeline:
    """What `Moments` reads: frames are decoded in a thread, converted in others, and explained in the caller's."""

    def __init__(
        self,
        localizer: Localizer,
        video: Video,
        prompts: list[Prompt],
        own_sound: bool,
        *,
        fps: float,
        track: int,
        silence: float,
        smoothing: float,
        batch_size: int,
        first: int,
        frames: int,
    ) -> None:
        self.video, self.prompts, self.own_sound, self.note = video, prompts, own_sound, ""
        self._localizer, self._fps, self._first = localizer, fps, first
        limit = max(1, _AHEAD_BYTES // (3 * video.width * video.height))
        self._frames = frames
        self._batch_size = math.ceil(min(batch_size, limit) / frames) * frames
        self._options = {"fps": fps, "frames": frames, "silence": silence, "smoothing": smoothing}
        self._reader = FrameReader(video, first / fps)
        self._sound = None
        try:
            if own_sound:
                self._sound = SoundWindows(video, localizer.model.audio_preprocess, track, silence, first / fps)  # type: ignore[attr-defined]
        except BaseException:
            self._reader.close()
            raise
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="avgrad-frame")
        self._ahead = Ahead(self._decoded(), min(2 * batch_size, limit), "avgrad-video")

    # ------------------------------------------------------------------ in other threads

    def _decoded(self) -> Iterator[_Decoded]:
        """The frames to analyse, in order; their conversion goes on beside."""
        last_frame, last_window = None, None
        image: Future[tuple[Image.Image, Tensor]]
        clip: Future[Tensor] | None = None
        for number, frame in frames_at(self._reader, self._fps, self._first):
            moment = number / self._fps
            # frames that are embedded together share the window around their middle
            middle = (number // self._frames * self._frames + (self._frames - 1) / 2) / self._fps
            window = None if self._sound is None else self._sound.at(middle)
            if window is None:
                clip = None
            elif window is not last_window:
                clip = self._pool.submit(self._localizer.model.audio_preprocess.clip, window)  # type: ignore[attr-defined]
            if frame is not last_frame:  # a frame that lasts is converted once: two threads must not convert it at once
                image = self._pool.submit(self._converted, frame)
            last_frame, last_window = frame, window
            yield moment, image, clip

    def _converted(self, frame: Any) -> tuple[Image.Image, Tensor]:
        image = upright(frame, self.video)
        return image, self._localizer.model.preprocess.whole(image, self._localizer.size)

    # ------------------------------------------------------------------ in the caller's thread

    def moments(self) -> Iterator[Moment]:
        """The moments, in order."""
        batch: list[_Frame] = []
        embeddings: dict[int, tuple[Tensor, Tensor]] = {}  # of the last windows, by their identity
        for moment, image, clip in self._ahead:
            batch.append(_Frame(moment, *image.result(), None if clip is None else clip.result()))
            if len(batch) == self._batch_size:
                yield from self._batch(batch, embeddings)
                batch = []
        if batch:
            yield from self._batch(batch, embeddings)
        self.note = self._reader.note or (self._sound.note if self._sound is not None else "")

    def _batch(self, frames: Sequence[_Frame], embeddings: dict[int, tuple[Tensor, Tensor]]) -> list[Moment]:
        start = time.perf_counter()
        prompts = [self._own(frames, embeddings), *([prompt] * len(frames) for prompt in self.prompts)]
        per_frame = [list(own) for own in zip(*prompts[0 if self.own_sound else 1 :], strict=True)]
        silent = [self.own_sound and frame.sound is None for frame in frames]
        chosen = [index for index, is_silent in enumerate(silent) if self.prompts or not is_silent]
        results: list[Localization | None] = [None] * len(frames)
        for part in self._together(chosen):
            settings = self._localizer.settings
            pixels = torch.stack([frames[index].pixels for index in part])
            prepared = settings.prepare(pixels, keep=False, view=self._view(len(part)))
            asked = [
                # something in place of the silence, whose map is not kept
                [per_frame[index][1], *per_frame[index][1:]] if silent[index] else per_frame[index]
                for index in part
            ]
            images, names = [frames[index].image for index in part], [self.video.name] * len(part)
            found = self._localizer.results(prepared, images, names, asked, settings)
            for index, result in zip(part, found, strict=True):
                results[index] = result
        seconds = {"frames": (time.perf_counter() - start) / len(frames)}
        return [self._moment(*parts, seconds) for parts in zip(frames, per_frame, silent, results, strict=True)]

    def _together(self, chosen: Sequence[int]) -> list[Sequence[int]]:
        """Frames that go through the model together: whole groups of `frames`, and what remains of the last group."""
        whole = len(chosen) // self._frames * self._frames
        return [part for part in (chosen[:whole], chosen[whole:]) if part]

    def _view(self, count: int) -> ViTView | None:
        """The view of so many frames; None for the model's own, of single images."""
        if self._frames == 1:
            return None
        view: ViTView = self._localizer.model.video_view(self._frames if count % self._frames == 0 else count)  # type: ignore[attr-defined]
        return view

    def _own(self, frames: Sequence[_Frame], embeddings: dict[int, tuple[Tensor, Tensor]]) -> list[Prompt]:
        """The prompts that the frames' own sounds are; each window is encoded once."""
        if not self.own_sound:
            return []
        windows = {id(frame.sound): frame.sound for frame in frames if frame.sound is not None}
        new = [window for key, window in windows.items() if key not in embeddings]
        if new:
            encoded = self._localizer.model.encode_audio(new).cpu()  # type: ignore[attr-defined]
            embeddings.update((id(window), (window, own)) for window, own in zip(new, encoded, strict=True))
        nothing = torch.zeros(self._localizer.model.vision.embed_dim)
        own = [nothing if frame.sound is None else embeddings[id(frame.sound)][1] for frame in frames]
        last = frames[-1].sound
        for key in [key for key in embeddings if last is None or key != id(last)]:
            del embeddings[key]
        return [Prompt(embedding, OWN_SOUND, "audio") for embedding in own]

    def _moment(
        self, frame: _Frame, prompts: list[Prompt], silent: bool, result: Localization | None, seconds: dict[str, float]
    ) -> Moment:
        localizer, count = self._localizer, len(prompts)
        if result is None:  # nothing was asked but the silence
            view, settings = localizer.model.vision, localizer.settings
            grid = view.grid(frame.pixels[None])
            result = Localization(
                image=frame.image,
                prompts=prompts,
                scores=torch.zeros(count),
                maps=torch.zeros(count, *grid),
                layer_maps=torch.zeros(count, 1, *grid),
                layers=settings.layers,
                model=localizer.model.name,
                method=settings.method,
                options={
                    "pooling": settings.pooling,
                    "size": localizer.size,
                    "correction": settings.correction,
                    **settings.options,
                },
                name=self.video.name,
                device=str(view.device),
                dtype=str(view.dtype).removeprefix("torch."),
                versions=versions(),
            )
        if silent:
            scores, maps, layer_maps = result.scores.clone(), result.maps.clone(), result.layer_maps.clone()
            scores[0], maps[0], layer_maps[0] = math.nan, 0, 0
            presence = None if result.presence is None else result.presence.clone()
            if presence is not None:
                presence[0] = math.nan
            changed = {"scores": scores, "maps": maps, "layer_maps": layer_maps, "presence": presence}
            result = replace(result, prompts=prompts, **changed)  # type: ignore[arg-type]
        values = {field.name: getattr(result, field.name) for field in fields(Localization)}
        values.update(options={**result.options, **self._options}, seconds=seconds)
        return Moment(**values, time=frame.time, silent=silent)

    def close(self) -> None:
        """Ends the threads and closes the files; closing twice does no harm."""
        self._ahead.close()
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()
        if self._sound is not None:
            self._sound.close()


class Moments(Iterator[Moment]):
    """Iterates over the moments of a video; `localize_video` makes it. A context manager, which ends its threads.

    Its threads also end when it is exhausted, by an error, and when nobody holds it any more.

    Attributes:
        video: what is analysed.
        model: what explains it.
        prompts: those that hold for all frames.
        own_sound: whether the video's own sound is a prompt too, the first one.
        count: about how many moments there will be.
        note: why it ended before the end of the video; empty where it did not.
    """

    # nothing that the threads hold refers to this object, so that it can be forgotten

    def __init__(
        self, localizer: Localizer, video: Video, prompts: list[Prompt], own_sound: bool, fps: float, **options: Any
    ) -> None:
        self.video, self.model, self.prompts, self.own_sound = video, localizer.model, prompts, own_sound
        self.count, self.note = max(ticks(video.duration, fps) - options["first"], 0), ""
        smoothing = options["smoothing"]
        self._pipeline = _Pipeline(localizer, video, prompts, own_sound, fps=fps, **options)
        self._moments = smoothed(self._pipeline.moments(), fps, smoothing)

    def __next__(self) -> Moment:
        try:
            return next(self._moments)
        except BaseException as error:
            self.close()
            if isinstance(error, StopIteration) and self._pipeline.note and not self.note:
                self.note = self._pipeline.note
                warnings.warn(self.note, MediaWarning, stacklevel=2)
            raise

    def close(self) -> None:
        """Ends the threads and closes the files; closing twice does no harm."""
        self._pipeline.close()

    def __enter__(self) -> Moments:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pipeline"):  # it was made as a whole
            self.close()


def localize_video(
    video: VideoSource,
    /,
    *,
    model: Model | str | Localizer,
    audio: AudioSource | Iterable[AudioSource] | None = None,
    text: str | Iterable[str] | None = None,
    speech: AudioSource | Iterable[AudioSource] | None = None,
    image: ImageSource | Iterable[ImageSource] | None = None,
    prompts: Prompt | Iterable[Prompt] | None = None,
    templates: str | Sequence[str] = "{}",
    own_sound: bool | None = None,
    fps: float = 4.0,
    track: int = 0,
    silence: float = SILENCE,
    smoothing: float = 0.0,
    batch_size: int = 16,
    first: int = 0,
    frames: int = 1,
    **options: Any,
) -> Moments:
    """Locates the own sound of a video, or given prompts, in the frames shown at 0, 1 / fps, 2 / fps, ... seconds.

    The prompt of a frame's own sound is a window around it, as long as the model's clip (2 seconds for ImageBind), and
    moved at the beginning and the end so that it lies within the video. Frames are decoded ahead and explained in
    batches; memory does not grow with the length of the video.

    Args:
        video: a path or the bytes of an MP4, MOV, WebM, Matroska, AVI or GIF file, or what
            `avgrad.media.open_video` gave.
        model: a model from `avgrad.load`, its name, or a `Localizer`, whose image is neither used nor changed.
        audio, text, speech, image, prompts, templates: prompts for all frames, as `Localizer.localize` takes them.
        own_sound: whether the video's own sound is a prompt, the first one; None: where there are no other prompts.
        fps: frames that are analysed, per second. Above the rate of the video, frames are given several times.
        track: number of the sound track; ignored when the own sound is no prompt.
        silence: level in dB of full scale below which a window of the own sound is silent: it is not explained.
        smoothing: seconds over which maps and scores are averaged; 0 for not. Silent moments stay silent.
        batch_size: the largest number of frames in a forward pass; fewer where frames are very large.
        first: number of the first frame to analyse: the one at `first / fps` seconds.
        frames: how many of the analysed frames in a row the model embeds as one video, for models with a temporal
            encoder (PE-AV, whose "-16-frame" forms were trained with 16). Then each frame's scores and maps are of
            that video's embedding, and its own sound is the window around the video's middle. `first` is a multiple.
        **options: further arguments of `Localizer`: `device`, `dtype`, `method`, `layers`, `pooling`, `size`,
            `correction` and the method's own options.

    Returns:
        An iterator over `Moment`, a `Localization` with `time` and `silent`. Its `note` says why it ended early, if it
        did; then there is a `MediaWarning`, too. It is a context manager: leaving it ends its threads.

    Raises:
        MediaError: the video cannot be read, or has no such sound track.
        UnsupportedModelError: several frames for a model of single images.
        PromptError, UnsupportedModelError, CheckpointError, InputError: as `Localizer` and `Localizer.localize`.

    Example:
        >>> import avgrad
        >>> for moment in avgrad.localize_video("band.mp4", model="mini"):  # doctest: +SKIP
        ...     print(moment.time, moment.scores, moment.boxes(0.5))
    """
    opened = video if isinstance(video, Video) else open_video(video)
    _check_number("fps", fps, MIN_FPS, MAX_FPS)
    _check_number("smoothing", smoothing, 0.0, 3600.0)
    _check_number("silence", silence, -math.inf, 0.0)
    if isinstance(model, Localizer):
        if options:
            raise InputError(f"{next(iter(options))} goes with a model; give it to the Localizer")
        localizer = model
    else:
        localizer = Localizer(model, **{"keep": False, **options})
    sources = {"audio": audio, "text": text, "speech": speech, "image": image, "templates": templates}
    given = localizer.checked_prompts(prompts, sources, required=False)
    own = not given if own_sound is None else own_sound
    if not own and not given:
        raise InputError("own_sound=False needs a prompt; give at least one of audio, text, speech, image and prompts")
    if own:
        localizer.require("audio")
        if not opened.num_tracks:
            raise MediaError(f"{opened.name} has no sound track; a video with sound is accepted, or give prompts.")
    return Moments(
        localizer,
        opened,
        given,
        own,
        fps=float(fps),
        track=track,
        silence=float(silence),
        smoothing=float(smoothing),
        batch_size=at_least("batch_size", batch_size, 1),
        first=at_least("first", first, 0),
        frames=_checked_frames(frames, first, localizer.model),
    )


def _checked_frames(frames: int, first: int, model: Model) -> int:
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise InputError(f"frames={frames!r} is not accepted; an integer of at least 1 is")
    if frames > 1 and not hasattr(model, "video_view"):
        raise UnsupportedModelError(f"frames={frames} needs a model of videos such as pe-av-base; {model.name} is none")
    if first % frames:
        raise InputError(f"first={first} is not accepted; with frames={frames} a multiple of it is")
    return frames


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        raise InputError(f"{name}={value!r} is not a number from {low:g} to {high:g}")
