"""Videos: files and bytes become a `Video`, whose frames and sound are decoded in order, each by a reader of its own.

Times are in seconds from the first frame that can be decoded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from avgrad.errors import MediaError, out_of_memory
from avgrad.media.audio import MAX_HOURS
from avgrad.media.ffmpeg import keep_quiet
from avgrad.media.image import MAX_ASPECT_RATIO
from avgrad.media.source import Source, open_source

if TYPE_CHECKING:
    import av

MAX_PIXELS = 8192 * 4608  # of a frame
MAX_HOLD = 600.0  # seconds that a frame may be shown; more is taken for a damaged time stamp
DEMUXERS = ("mp4", "matroska", "avi", "gif")
_ACCEPTED = "an MP4, MOV, WebM, Matroska, AVI or GIF video, or its bytes"
_TOLERANCE = 0.5  # seconds by which a video may be shorter than its header says
_FALLBACK_RATE = Fraction(25)


@dataclass(frozen=True)
class Video:
    """A video that was opened and checked; it holds no file open.

    Attributes:
        source: the file or its bytes.
        name: what messages call it.
        width, height: of its frames in pixels, upright and with square pixels.
        rate: frames per second, on average.
        duration: in seconds, as the file says; of a file that does not say, the time of its last packet.
        is_certain: whether the duration is that of the images; else the sound may be what lasts so long.
        origin: time of the first frame in the file, in seconds.
        num_tracks: number of sound tracks.
    """

    source: Source
    name: str
    width: int
    height: int
    rate: Fraction
    duration: float
    is_certain: bool
    origin: float
    num_tracks: int

    def opened(self, stack: ExitStack) -> av.container.InputContainer:
        """Opens the file anew; the stack closes it."""
        return _opened(self.source, stack)


def _opened(source: Source, stack: ExitStack) -> av.container.InputContainer:
    import av

    keep_quiet()
    assert source.signature is not None
    stream = stack.enter_context(source.open())
    return stack.enter_context(
        av.open(stream, mode="r", format=source.signature.demuxer, metadata_errors="ignore")  # type: ignore[arg-type]
    )


def image_track(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first track of images that is no cover art."""
    import av

    cover = av.stream.Disposition.attached_pic
    return next((track for track in container.streams.video if not track.disposition & cover), None)


def is_video(source: str | os.PathLike[str] | bytes) -> bool:
    """Whether a file holds moving images: a track of them, or a GIF of several images.

    A file that cannot be read is none; what reads it as an image then says why.
    """
    try:
        file = open_source(source, None, _ACCEPTED)
    except MediaError:
        return False
    if file.signature is None or file.signature.demuxer not in DEMUXERS:
        return False
    try:
        if file.signature.demuxer == "gif":
            with file.open() as stream, Image.open(stream, formats=["GIF"]) as image:
                return bool(getattr(image, "is_animated", False))
        with ExitStack() as stack:
            return image_track(_opened(file, stack)) is not None
    except Exception:  # a damaged video is refused as a video
        return True


def open_video(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> Video:
    """Looks at a video: decodes its first frame, and no more.

    Args:
        source: a path or the bytes of an MP4, MOV, WebM, Matroska, AVI or GIF file.
        name: how messages call it; by default the name of the file.

    Raises:
        MediaError: the source is none of these or has no images, nothing can be decoded, or its frames have more than
            `MAX_PIXELS` pixels or are more than 100 times as long as wide, or it lasts more than 24 hours.
    """
    file = open_source(source, name, _ACCEPTED)
    if file.signature is None or file.signature.demuxer not in DEMUXERS:
        description = file.signature.description if file.signature else "in no known format"
        raise MediaError(f"{file.name} is {description}; {_ACCEPTED} is accepted.")
    try:
        with ExitStack() as stack:
            return _measured(file, _opened(file, stack))
    except MediaError:
        raise
    except Exception as error:  # PyAV raises errors of many types on damaged files
        raise MediaError(
            f"{file.name} looks like {file.signature.description} but is damaged or in an unsupported encoding; "
            f"{_ACCEPTED} is accepted."
        ) from error


def _measured(file: Source, container: av.container.InputContainer) -> Video:
    track = image_track(container)
    if track is None:
        raise MediaError(f"{file.name} has no images, only sound; {_ACCEPTED} is accepted.")
    context = track.codec_context
    _check_size(file.name, context.width, context.height)  # before a frame of that size is decoded
    first = next(_decoded(container, track), None)
    if first is None:
        raise MediaError(f"{file.name} has no image that can be decoded; a complete file is accepted.")
    _check_size(file.name, first.width, first.height)
    ratio = float(context.sample_aspect_ratio or 1)
    width, height = max(1, round(first.width * ratio)), first.height
    _check_size(file.name, width, height)
    if first.rotation % 180:
        width, height = height, width
    rate = Fraction(track.average_rate or track.guessed_rate or _FALLBACK_RATE)
    if not 1 / MAX_HOLD <= rate <= 1000:
        rate = _FALLBACK_RATE
    origin: float = float(first.pts * first.time_base) if first.pts is not None and first.time_base else 0.0
    duration, is_certain = _duration(container, track, origin)
    if duration > MAX_HOURS * 3600:
        raise MediaError(f"{file.name} lasts {duration / 3600:.0f} hours; at most {MAX_HOURS} are accepted.")
    return Video(
        source=file,
        name=file.name,
        width=width,
        height=height,
        rate=rate,
        duration=max(duration, float(1 / rate)),
        is_certain=is_certain,
        origin=origin,
        num_tracks=len(container.streams.audio),
    )


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(f"{name} has frames of {width} x {height} pixels; at most {MAX_PIXELS:,} are accepted.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise MediaError(f"{name} has frames of {width} x {height} pixels; at most {MAX_ASPECT_RATIO} : 1 is accepted.")


def _duration(container: av.container.InputContainer, track: av.VideoStream, origin: float) -> tuple[float, bool]:
    """In seconds: the track's, the file's, or that of its packets; and whether it is that of the images."""
    if track.duration and track.time_base:
        return float(track.duration * track.time_base), True
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", track.metadata.get("DURATION", ""))  # of Matroska
    if tag is not None:
        hours, minutes, seconds = map(float, tag.groups())
        return max(3600 * hours + 60 * minutes + seconds - origin, 0.0), True
    if container.duration and container.duration > 0:
        return max(container.duration / 1e6 - max(origin, 0.0), 0.0), not container.streams.audio
    end = origin
    for packet in container.demux(track):  # recordings of browsers say nothing
        if packet.pts is not None and packet.time_base:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end - origin, False


def _decoded(container: av.container.InputContainer, track: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames from the current place on. What cannot be decoded before the first one is passed over."""
    import av

    track.thread_type = "AUTO"
    begun = False
    for packet in container.demux(track):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if begun:
                raise
            continue
        for frame in frames:
            begun = True
            yield frame


class FrameReader:
    """Iterates over the frames of a video in the order of their times; a context manager.

    Attributes:
        end: when the last frame that was given stops being shown, in seconds.
        note: why it ended before the end of the video; None where it did not.

    Args:
        video: the video.
        start: in seconds; the first frame given is shown then, or is a little earlier.
    """

    def __init__(self, video: Video, start: float = 0.0) -> None:
        self._video, self._stack = video, ExitStack()
        self.end, self.note = 0.0, ""
        try:
            self._container = video.opened(self._stack)
            track = image_track(self._container)
            assert track is not None and track.time_base is not None
            self._track, self._tick = track, track.time_base
            if start > 0:
                self._container.seek(int((video.origin + start) / self._tick), stream=track, backward=True)
        except BaseException:
            self._stack.close()
            raise

    def __iter__(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Times in seconds and frames; times never fall."""
        import av

        video, last, first = self._video, 0.0, True
        try:
            for frame in _decoded(self._container, self._track):
                time = last if first else self.end
                if frame.pts is not None:
                    time = float(frame.pts * self._tick) - video.origin
                if not first and time - last > MAX_HOLD:
                    self.note = f"{video.name} has damaged time stamps after {last:.1f} s; it was used up to there"
                    return
                if frame.is_corrupt and not first:
                    self.note = f"{video.name} is damaged after {last:.1f} s; it was used up to there"
                    return
                if frame.width * frame.height > MAX_PIXELS:
                    self.note = f"{video.name} changes its size after {last:.1f} s; it was used up to there"
                    return
                if not first and time < last:
                    continue
                last, first = time, False
                length = float(frame.duration * self._tick) if frame.duration else float(1 / video.rate)
                self.end = time + min(length, MAX_HOLD)
                yield time, frame
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if out_of_memory(error):
                raise
            self.note = f"{video.name} is damaged after {last:.1f} s; it was used up to there"
            return
        if video.is_certain and self.end < video.duration - max(_TOLERANCE, 0.02 * video.duration):
            self.note = f"{video.name} is cut short: it ends at {self.end:.1f} s of {video.duration:.1f} s"

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def upright(frame: av.VideoFrame, video: Video) -> Image.Image:
    """A frame as an RGB image of the video's size, rotated as the file says."""
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    width, height = (video.height, video.width) if turns % 2 else (video.width, video.height)
    pixels: Any = frame.to_ndarray(format="rgb24", width=width, height=height)
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))


def frames_at(frames: FrameReader, fps: float, first: int = 0) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frame that is shown at each time k / fps, for k from `first` on; frames that last are given several times."""
    number, shown = first, None
    for time, frame in frames:
        while shown is not None and number / fps < time - 1e-4:
            yield number, shown
            number += 1
        shown = frame
    while shown is not None and (number / fps < frames.end - 1e-4 or number == first == 0):
        yield number, shown
        number += 1


def ticks(duration: float, fps: float) -> int:
    """How many times k / fps lie within a duration: at least one."""
    return max(1, math.ceil(duration * fps - 1e-4))
