"""Images of what was found: outlines of masks, log-mel spectrograms, a strip for each scene, a montage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avgrad.demo.answers import MODALITIES, Answer, Look
from avgrad.media import open_audio

FOUND, TRUE = (255, 255, 255), (255, 0, 200)
"""Colours of outlines: what was found, and the truth; the colour map has neither."""
OBJECTS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))
"""A colour for each object of a scene (Okabe and Ito's, which colour-blind people can tell apart)."""

ASKED = {"audio": "by its sound", "speech": "by a spoken phrase", "text": "by a text"}

_PAPER, _INK, _FAINT, _LINE = (255, 255, 255), (24, 27, 32), (98, 105, 116), (214, 218, 224)
_MEL_BINS, _WINDOW, _HOP, _RANGE_DB = 64, 1024, 160, 70.0


class Area(NamedTuple):
    """A mask, bool [H, W], and the colour it is shown in."""

    mask: NDArray[np.bool_]
    colour: tuple[int, int, int]


def outline(mask: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """The pixels up to `width` inside and outside a mask's edge: bool [H, W], as the mask is."""
    from scipy.ndimage import maximum_filter, minimum_filter

    side = 2 * width + 1
    return np.asarray(maximum_filter(mask, side, mode="nearest") != minimum_filter(mask, side, mode="nearest"))


def outlined(
    image: Image.Image, found: NDArray[np.bool_] | None = None, truth: NDArray[np.bool_] | None = None
) -> Image.Image:
    """An image with the outline of the found mask, solid, and of the true one, dashed."""
    pixels = np.array(image)
    if truth is not None:
        rows, columns = np.indices(truth.shape)
        pixels[outline(truth) & ((rows + columns) // 7 % 2 == 0)] = TRUE
    if found is not None:
        pixels[outline(found, 2)] = (20, 20, 20)
        pixels[outline(found, 1)] = FOUND
    return Image.fromarray(pixels)


def filled(image: Image.Image, areas: Sequence[Area], edges: Sequence[Area] = ()) -> Image.Image:
    """An image in grey with masks in colour, and with the outlines of others."""
    grey = image.convert("L").convert("RGB")
    pixels = np.asarray(grey, dtype=np.float32) * 0.55 + 70
    for area in areas:
        pixels[area.mask] = 0.3 * pixels[area.mask] + 0.7 * np.array(area.colour)
    for edge in edges:
        pixels[outline(edge.mask, 2)] = 20
        pixels[outline(edge.mask, 1)] = edge.colour
    return Image.fromarray(pixels.astype(np.uint8))


def log_mel_image(sound: str | os.PathLike[str], size: tuple[int, int] = (384, 96)) -> Image.Image:
    """The log-mel spectrogram of a sound's first channel, time to the right and frequency upwards, RGB.

    Args:
        sound: a file.
        size: width and height in pixels.

    Raises:
        MediaError: it cannot be read as a sound.
    """
    import torch
    from librosa.filters import mel  # librosa.feature compiles for half a minute when it is first imported
    from matplotlib import colormaps

    with open_audio(sound) as audio:
        waveform, rate = audio.read_clips([(0, audio.num_frames)])[0][0], audio.sample_rate
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(waveform, _WINDOW, _HOP, window=window, return_complex=True).abs().square()
    power = mel(sr=rate, n_fft=_WINDOW, n_mels=_MEL_BINS) @ spectrum.numpy()
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    shade = np.clip(1 + (decibels - decibels.max()) / _RANGE_DB, 0, 1)[::-1]
    colours = np.rint(colormaps["magma"](shade)[..., :3] * 255).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR)


def answer_image(look: Look, answer: Answer) -> Image.Image:
    """The overlay of an answer, with the outlines of the found and the true mask where the object is there."""
    overlay = look.result.overlay(answer.index)
    if answer.iou is None:
        return overlay
    return outlined(overlay, look.result.mask(0.5)[answer.index].numpy(), answer.obj.mask())


def truth_image(look: Look) -> Image.Image:
    """The scene in grey with the true masks in colour."""
    return filled(look.result.image, _areas(look))


def _areas(look: Look) -> list[Area]:
    return [Area(obj.mask(), colour) for obj, colour in zip(look.sample.objects, OBJECTS, strict=False)]


def _turns(look: Look) -> list[Answer]:
    """One answer for each object of a scene, the modalities by turns."""
    turns = (MODALITIES[number % len(MODALITIES)] for number in range(len(look.sample.objects)))
    return [look.answer(obj, modality) for obj, modality in zip(look.sample.objects, turns, strict=True)]


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


class _Sheet:
    """A sheet of paper that images and lines of text are put on."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), _PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self,
        x: int,
        y: int,
        words: str,
        size: int,
        colour: tuple[int, int, int] = _INK,
        bold: bool = False,
        room: int | None = None,
    ) -> None:
        """Writes a line; (x, y) is its left top, or its middle where `room`, the width to keep to, is given."""
        font = _font(size, bold)
        while room and font.getlength(words) > room:
            size -= 1
            font = _font(size, bold)
        self._draw.text((x, y), words, fill=colour, font=font, anchor="mm" if room else "la")

    def frame(self, x: int, y: int, width: int, height: int) -> None:
        self._draw.rounded_rectangle((x, y, x + width - 1, y + height - 1), 6, outline=_LINE, width=2)

    def paste(self, x: int, y: int, image: Image.Image, width: int) -> None:
        """Puts a square image at `width` pixels wide."""
        self.image.paste(image.resize((width, width), Image.Resampling.LANCZOS), (x, y))


def _figures(answer: Answer) -> str:
    overlap = "" if answer.iou is None else f"   IoU {answer.iou:.2f}"
    return f"score {answer.score:.2f}{overlap}"


def strip(look: Look) -> Image.Image:
    """A scene, an overlay for each of its objects, the masks found and the true ones, side by side.

    The prompts are a sound, a spoken phrase and a text by turns.
    """
    side, gap, margin, top = 320, 14, 20, 62
    answers = _turns(look)
    masks = look.result.mask(0.5).numpy()
    found = [Area(masks[answer.index], colour) for answer, colour in zip(answers, OBJECTS, strict=False)]
    tiles = [
        ("the scene", look.sample.title, look.result.image),
        *(
            (
                f"{answer.obj.object_class}, {ASKED[answer.modality]}",
                _figures(answer),
                outlined(look.result.overlay(answer.index), masks[answer.index]),
            )
            for answer in answers
        ),
        ("masks found", "heatmaps from 0.5 on", filled(look.result.image, found)),
        ("true masks", "as the scene was drawn", truth_image(look)),
    ]
    sheet = _Sheet(2 * margin + len(tiles) * (side + gap) - gap, 2 * margin + top + side)
    for number, (title, below, image) in enumerate(tiles):
        x = margin + number * (side + gap)
        sheet.text(x, margin, title, 20, bold=True)
        sheet.text(x, margin + 28, below, 17, _FAINT)
        sheet.paste(x, margin + top, image, side)
    return sheet.image


def gallery(looks: Sequence[Look], rows: int = 3) -> Image.Image:
    """A montage 1600 pixels wide: scenes of three objects, one asked for by each modality.

    Args:
        looks: the first `rows` of them with just three objects are shown.
        rows: how many scenes.
    """
    side, gap, margin, head, prompt, foot = 304, 12, 16, 44, 64, 36
    shown = [look for look in looks if len(look.sample.objects) == len(MODALITIES)][:rows]
    height = prompt + 8 + side + foot
    sheet = _Sheet(1600, margin + head + len(shown) * height)
    titles = ("the image", *(ASKED[modality] for modality in MODALITIES), "true mask, outline found")
    for number, title in enumerate(titles):
        x = margin + number * (side + gap)
        sheet.text(x + side // 2, margin + head // 2 - 6, title, 20, bold=True, room=side)
    for row, look in enumerate(shown):
        y, answers, areas = margin + head + row * height, _turns(look), _areas(look)
        found = look.result.mask(0.5).numpy()
        edges = [Area(found[answer.index], FOUND) for answer in answers]
        images = [
            look.result.image,
            *(outlined(look.result.overlay(answer.index), found[answer.index]) for answer in answers),
            filled(look.result.image, areas, edges),
        ]
        for number, image in enumerate(images):
            sheet.paste(margin + number * (side + gap), y + prompt + 8, image, side)
        sheet.text(margin + side // 2, y + prompt // 2, look.sample.title, 24, room=side)
        for number, answer in enumerate(answers, start=1):
            _prompt(sheet, margin + number * (side + gap), y, side, prompt, answer)
            x = margin + number * (side + gap) + side // 2
            sheet.text(x, y + prompt + 8 + side + foot // 2 - 4, _figures(answer), 19, _FAINT, room=side)
    return sheet.image


def _prompt(sheet: _Sheet, x: int, y: int, width: int, height: int, answer: Answer) -> None:
    """What was asked: a sound as its log-mel image, words as words."""
    if answer.modality == "audio":
        sheet.image.paste(log_mel_image(answer.obj.sound, (width, height)), (x, y))
        return
    sheet.frame(x, y, width, height)
    words = f"“{answer.words}”"
    if answer.modality == "text":
        sheet.text(x + width // 2, y + height // 2, words, 24, room=width - 20)
        return
    sheet.text(x + width // 2, y + 17, words, 20, room=width - 20)
    sheet.image.paste(log_mel_image(answer.obj.speech, (width - 16, height - 38)), (x + 8, y + 32))
