"""Style: the style sheet, and the escaping of visitors' words."""

from __future__ import annotations

import base64
import io
import re
from functools import cache

import streamlit as st
from PIL import Image

from avgrad.scenes.samples import samples

_TILE = (192, 144)

_CSS = """
[data-testid="stMainBlockContainer"] { max-width: 1240px; padding: 2.2rem 1.4rem 4rem; }
[data-testid="stHeader"] { background: transparent; pointer-events: none; }
[data-testid="stHeader"] button { pointer-events: auto; backdrop-filter: blur(8px); border-radius: .5rem; }
.lead { font-size: 1.08rem; opacity: .78; max-width: 46rem; margin: 0; }
.title { font-size: clamp(1.6rem, 4vw, 2.4rem); font-weight: 700; letter-spacing: -.02em; line-height: 1.15;
  margin: 0 0 .4rem; text-wrap: balance; }
.st-key-tiles { gap: .6rem; }
.st-key-tiles button { width: 136px; height: 102px; padding: 0; border-radius: .7rem; overflow: hidden;
  background-size: cover; background-position: center; border: 0; align-items: flex-end; }
.st-key-tiles button:hover { filter: brightness(1.08); }
.st-key-tiles button[kind="primary"] { box-shadow: 0 0 0 3px #2f8af0; }
.st-key-tiles button > div { width: 100%; justify-content: flex-start; padding: 1.1rem .5rem .25rem;
  background: linear-gradient(transparent, rgba(0, 0, 0, .78)); }
.st-key-tiles button p { color: #fff; font-size: .82rem; line-height: 1.15; text-align: left; }
.asked { display: flex; align-items: center; gap: .5rem; min-width: 0; font-size: 1.05rem; line-height: 1.3; }
.asked b { overflow-wrap: anywhere; font-weight: 600; }
.asked i, .legend i { flex: none; width: .85rem; height: .85rem; border-radius: 50%; background: var(--prompt);
  border: 1px solid rgba(128, 128, 128, .6); }
.asked small { margin-left: auto; flex: none; font-size: .74rem; opacity: .7; text-transform: uppercase;
  letter-spacing: .06em; }
.verdict { margin: .25rem 0 0; display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .95rem; }
.verdict .no { background: #b93a0b; color: #fff; border-radius: .4rem; padding: 0 .5rem; }
.verdict small { opacity: .7; font-variant-numeric: tabular-nums; font-size: .86rem; align-self: center; }
ul.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: 0; margin: 0; list-style: none; }
ul.legend li { display: flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; margin: 0; padding: 0; }
[data-testid="stHeading"] h2 { font-size: 1.25rem; padding: .2rem 0 0; }
.st-key-heatmap [data-testid="stImage"] img { max-height: 70vh; width: auto; max-width: 100%; border-radius: .7rem; }
.st-key-player video { max-height: 44vh; background: #111; border-radius: .7rem; }
[class*="st-key-moment_"] [data-testid="stImage"] img { max-height: 52vh; width: auto; max-width: 100%;
  border-radius: .7rem; }
.model { margin-top: .5rem !important; }
.faint { font-size: .84rem; opacity: .68; margin: 0; }
@media (max-width: 640px) { [data-testid="stMainBlockContainer"] { padding: 2.8rem 1rem 3rem; }
  .st-key-tiles { flex-wrap: nowrap !important; overflow-x: auto; scrollbar-width: thin; padding-bottom: .4rem; }
  .st-key-tiles > div { flex: none; } .st-key-tiles button { width: 104px; height: 78px; } }
"""


def apply() -> None:
    """Adds the style sheet to the page."""
    st.html(f"<style>{_CSS}{_tiles()}</style>")


@cache
def _tiles() -> str:
    """The sample scenes as backgrounds of their buttons."""
    rules = []
    for number, sample in enumerate(samples()):
        with Image.open(sample.image) as image:
            side = image.width
            small = image.convert("RGB").resize(_TILE, box=(0, side // 8, side, side * 7 // 8))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=80)
        data = base64.b64encode(stream.getvalue()).decode()
        rules.append(f".st-key-sample_{number} button {{ background-image: url(data:image/jpeg;base64,{data}); }}")
    return "\n".join(rules)


@cache
def icon() -> Image.Image:
    """The icon of the browser's tab."""
    from PIL import ImageDraw

    image = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(image)
    for radius, colour in ((30, "#2b3fbf"), (22, "#1fc7a4"), (14, "#fbb938"), (7, "#c42503")):
        draw.ellipse((32 - radius, 32 - radius, 32 + radius, 32 + radius), fill=colour)
    return image


def plain(words: str) -> str:
    """Markdown that shows words as they are.

    >>> plain("<b>[a](b)_1.wav")
    '\\\\<b\\\\>\\\\[a\\\\]\\\\(b\\\\)\\\\_1\\\\.wav'
    """
    return re.sub(r"([^\w\s]|_)", r"\\\1", " ".join(words.split()), flags=re.ASCII)


def css(colour: tuple[int, int, int]) -> str:
    """A colour in CSS.

    >>> css((0, 158, 115))
    '#009e73'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)
