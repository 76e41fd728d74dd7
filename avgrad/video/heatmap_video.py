"""The video with its heatmaps laid over it, rendered by a thread of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avgrad.drawing import PALETTE
from avgrad.engine.attribute import normalized
from avgrad.media.video import FrameReader, Video
from avgrad.media.video_file import COPIED, VideoFile, aac_rate
from avgrad.media.video_sound import SoundReader

if TYPE_CHECKING:
    import av

SIDE = 1280  # of the longer side of the heatmap video, in pixels
OPACITY = 0.75
_FAINT = 0.2  # of the opacity
_COARSE = 4  # colors are made at a fraction of the size, and upsampled
_WAITING = 64  # moments
_POLL = 0.1
_BLOCK = 0.5  # seconds of sound that are encoded at once


@dataclass(frozen=True, eq=False)
class Heat:
    """The heatmaps of one moment.

    Attributes:
        time: in seconds.
        maps: raw maps `[P, gh, gw]`; zero where a prompt was not explained.
        strengths: factors of the opacity `[P]`, in [0, 1].
        normalized_first: as in `Localization`.
    """

    time: float
    maps: Tensor
    strengths: Tensor
    normalized_first: bool


def strengths_of(presence: Tensor) -> Tensor:
    """How strongly heatmaps are shown, `[P]`: faintly where the prompt is probably not in the image.

    Every heatmap is hot somewhere, also where the prompt is not in the image.

    Args:
        presence: of the prompts `[P]`, see `Localization`; NaN, where it is unknown, is shown like 1.
    """
    return _FAINT + (1 - _FAINT) * presence.nan_to_num(1.0)


class HeatmapVideo:
    """Renders frames at the video's own rate with the heatmaps of moments, interpolated in between, and their sound.

    One prompt is shown in a colormap, several in a color each. The file is complete when `finish` or `stop` returns.

    Args:
        path: of the MP4 file.
        video: the video.
        num_prompts: P.
        track: number of the sound track that is copied; ignored where there is none.
        side: the longer side in pixels; smaller videos keep their size.
    """

    def __init__(
        self, path: str | os.PathLike[str], video: Video, num_prompts: int, track: int = 0, side: int = SIDE
    ) -> None:
        scale = min(1.0, side / max(video.width, video.height))
        self.width, self.height = (max(2, 2 * round(length * scale / 2)) for length in (video.width, video.height))
        self._path, self._video, self._track = path, video, min(track, video.num_tracks - 1)
        self._painter = Painter(num_prompts, self.width, self.height)
        self._queue: queue.Queue[Heat | None] = queue.Queue(_WAITING)
        self._stopped = threading.Event()
        self._complete = False
        self._error: BaseException | None = None
        self.seconds = 0.0  # shown so far
        self._thread = threading.Thread(target=self._run, name="avgrad-render", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ in the caller's thread

    def add(self, heat: Heat | None) -> None:
        """Gives the next moment, in the order of their times; waits while many are not rendered yet.

        Raises:
            OSError: the file cannot be written.
        """
        while self._error is None and not self._stopped.is_set():
            try:
                self._queue.put(heat, timeout=_POLL)
                return
            except queue.Full:
                continue
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Renders what is left of the video, and completes the file."""
        self._complete = True
        self.add(None)
        self._join()

    def stop(self) -> None:
        """Completes the file with what was rendered so far."""
        self._stopped.set()
        self._join()

    def _join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    # ------------------------------------------------------------------ in its own thread

    def _run(self) -> None:
        try:
            self._render()
        except BaseException as error:
            self._error = error

    def _heats(self) -> Iterator[Heat]:
        while not self._stopped.is_set():
            try:
                heat = self._queue.get(timeout=_POLL)
            except queue.Empty:
                continue
            if heat is None:
                return
            yield heat

    def _render(self) -> None:
        video, heats = self._video, self._heats()
        before = after = next(heats, None)
        if before is None:
            return
        with ExitStack() as stack:
            file = stack.enter_context(VideoFile(self._path, self.width, self.height, video.rate))
            sound = stack.enter_context(_Sound(file, video, self._track)) if video.num_tracks else None
            frames = stack.enter_context(FrameReader(video))
            for time, frame in frames:
                while after is not None and after.time < time:
                    before, after = after, next(heats, None)
                if self._stopped.is_set() or (after is None and not self._complete):
                    break
                if sound is not None:
                    sound.write_until(time)
                file.write_image(self._painted(frame, time, before, after), time)
                self.seconds = time
            else:
                if sound is not None:
                    sound.write_until(float("inf"))

    def _painted(self, frame: av.VideoFrame, time: float, before: Heat, after: Heat | None) -> av.VideoFrame:
        share = 0.0
        if after is not None and after.time > before.time:
            share = min(max((time - before.time) / (after.time - before.time), 0.0), 1.0)
        heat, strengths = self._painter.heatmaps(before), before.strengths
        if after is not None and share > 0:
            heat = torch.lerp(heat, self._painter.heatmaps(after), share)
            strengths = torch.lerp(strengths, after.strengths, share)
        return self._painter.paint(frame, heat, strengths)


class Painter:
    """Lays heatmaps over frames, in YUV.

    Args:
        num_prompts: P.
        width, height: of the result, even.
    """

    def __init__(self, num_prompts: int, width: int, height: int) -> None:
        from matplotlib import colormaps

        self._width, self._height = width, height
        self._coarse = max(2, height // _COARSE), max(2, width // _COARSE)
        self._single = num_prompts == 1
        turbo = np.asarray(colormaps["turbo"](np.arange(256)))[:, :3] * 255
        palette = np.array([PALETTE[index % len(PALETTE)] for index in range(num_prompts)])
        self._colors = torch.from_numpy(_yuv(turbo if self._single else palette)).float()
        self._kept: list[tuple[Heat, Tensor]] = []

    def heatmaps(self, heat: Heat) -> Tensor:
        """The heatmaps of a moment at a fraction of the size, `[P, h, w]` in [0, 1]."""
        for known, values in self._kept:
            if known is heat:
                return values
        values = normalized(heat.maps[None], self._coarse, heat.normalized_first)[0]
        self._kept = [*self._kept[-1:], (heat, values)]
        return values

    def layer(self, heat: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor]:
        """Colors in YUV `[3, h, w]` and opacity `[h, w]` of heatmaps `[P, h, w]` of these strengths `[P]`."""
        if self._single:
            index = (heat[0] * 255).round().long()
            # the square root lets the image show through where it is cold, as in `Localization.overlay`
            return self._colors[index].permute(2, 0, 1), OPACITY * strengths[0] * heat[0].sqrt()
        weights = strengths[:, None, None] * ((heat - 0.25) / 0.75).clamp(0, 1)
        shares = weights**3  # where several are hot, the hottest dominates
        mixed = torch.einsum("phw,pc->chw", shares, self._colors) / shares.sum(0).clamp_min(1e-9)
        return mixed, OPACITY * weights.amax(0).sqrt()

    def paint(self, frame: av.VideoFrame, heat: Tensor, strengths: Tensor) -> av.VideoFrame:
        """A frame, scaled and upright, with heatmaps `[P, h, w]` of strengths `[P]` laid over it, yuv420p."""
        import av

        turns = round(frame.rotation / 90) % 4
        width, height = (self._height, self._width) if turns % 2 else (self._width, self._height)
        pixels: Any = frame.to_ndarray(format="yuv420p", width=width, height=height)
        luma = np.rot90(pixels[:height], turns)
        chroma = np.rot90(pixels[height:].reshape(2, height // 2, width // 2), turns, (1, 2))
        color, opacity = self.layer(heat, strengths)
        painted = np.empty((self._height * 3 // 2, self._width), np.uint8)
        layer = torch.cat([(1 - opacity)[None], opacity * color])[None]
        large = F.interpolate(layer[:, :2], (self._height, self._width), mode="bilinear")[0]
        small = F.interpolate(layer[:, [0, 2, 3]], (self._height // 2, self._width // 2), mode="bilinear")[0]
        painted[: self._height] = _over(luma, large[0], large[1]).numpy()
        painted[self._height :] = _over(chroma, small[0], small[1:]).numpy().reshape(-1, self._width)
        return av.VideoFrame.from_ndarray(painted, "yuv420p")


def _over(base: np.ndarray, clear: Tensor, color: Tensor) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(base)).float()
    return values.mul_(clear).add_(color).round_().clamp_(0, 255).byte()


def _yuv(rgb: np.ndarray) -> np.ndarray:
    """Colors `[N, 3]` in [0, 255] as limited-range YUV of BT.601."""
    red, green, blue = rgb.T / 255
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.stack([16 + 219 * luma, 128 + 224 * (blue - luma) / 1.772, 128 + 224 * (red - luma) / 1.402], axis=1)


class _Sound:
    """The original sound: packets are copied where browsers play them in MP4, and else encoded anew."""

    def __init__(self, file: VideoFile, video: Video, track: int) -> None:
        self._file, self._video, self._stack = file, video, ExitStack()
        self._rest: Iterator[float]
        self._written = 0.0  # seconds
        container = video.opened(self._stack)
        source = container.streams.audio[track]
        if source.codec_context.name in COPIED:
            file.copy_sound(source)
            self._rest = self._copied(container, source)
        else:
            rate = aac_rate(source.rate or 48_000)
            channels = min(2, source.codec_context.channels)
            file.encode_sound(rate, channels)
            reader = self._stack.enter_context(SoundReader(video, rate, track, channels=channels))
            self._rest = self._encoded(reader, rate)

    def write_until(self, time: float) -> None:
        """Writes the sound up to a time in seconds."""
        while self._written <= time:
            end = next(self._rest, None)
            if end is None:
                return
            self._written = max(end, self._written)

    def _copied(self, container: Any, source: Any) -> Iterator[float]:
        import av

        try:
            for packet in container.demux(source):
                if packet.pts is None or not packet.size:
                    continue
                time = float(packet.pts * packet.time_base) - self._video.origin
                self._file.write_packet(packet, time)
                yield time
        except (av.error.FFmpegError, ValueError):  # damaged from here on
            return

    def _encoded(self, reader: SoundReader, rate: int) -> Iterator[float]:
        block, position = round(_BLOCK * rate), 0
        while True:
            piece = reader.read_rest(position, position + block)
            if not piece.shape[1]:
                return
            self._file.write_sound(piece.numpy())
            position += piece.shape[1]
            yield position / rate

    def __enter__(self) -> _Sound:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
