"""The demo's page: one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import mean

from PIL import Image

from avgrad.demo.answers import MODALITIES, Answer, SceneResult
from avgrad.demo.images import OBJECTS, answer_image, truth_image
from avgrad.drawing import log_mel_of_file

_BY = {"audio": "sound", "speech": "speech", "text": "text"}
_PROMPTS = {"audio": "Sounds", "speech": "Spoken phrases", "text": "Texts"}

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #181b20; --faint: #5d6570; --line: #dde1e7;
  --accent: #0b6bcb; --good: #11734a; --bad: #a33a12; --truth: #d600a8; }
@media (prefers-color-scheme: dark) { :root { --paper: #111418; --card: #1a1f25; --ink: #e8eaee; --faint: #a0a9b5;
  --line: #2e353e; --accent: #6db3ff; --good: #5cd39b; --bad: #ff9a6c; --truth: #ff5fdc; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1440px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: clamp(1.7rem, 4.2vw, 2.7rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .8rem;
  text-wrap: balance; }
h2 { font-size: 1.5rem; margin: 0; letter-spacing: -.01em; }
h3 { font-size: 1.1rem; margin: 0 0 .5rem; display: flex; align-items: center; gap: .5rem; }
h3 i { width: .8rem; height: .8rem; border-radius: 50%; background: var(--object); }
p { margin: 0 0 .8rem; max-width: 46rem; }
.lead { font-size: 1.1rem; color: var(--faint); }
.key { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; padding: 0; margin: 1.2rem 0 0; list-style: none;
  color: var(--faint); font-size: .92rem; }
.key svg { vertical-align: -.1em; margin-right: .45rem; }
.table { overflow-x: auto; margin: 1.4rem 0; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
th, td { padding: .45rem .9rem; text-align: right; font-variant-numeric: tabular-nums; }
th { font-size: .85rem; font-weight: 600; color: var(--faint); }
th:first-child, td:first-child { text-align: left; }
tr + tr td { border-top: 1px solid var(--line); }
section { display: grid; grid-template-columns: minmax(230px, 330px) minmax(0, 1fr); gap: 1.6rem; margin-top: 3rem;
  padding-top: 2rem; border-top: 1px solid var(--line); }
.scene { position: sticky; top: 1rem; align-self: start; display: grid; gap: .8rem; }
.scene p { margin: .2rem 0 0; color: var(--faint); }
img { display: block; max-width: 100%; height: auto; border-radius: 8px; }
figure { margin: 0; }
figcaption { font-size: .88rem; color: var(--faint); }
.scene figcaption { margin-top: .3rem; }
.object + .object, .absent { margin-top: 1.6rem; }
.row { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1rem; }
.answer { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .6rem; min-width: 0; }
.answer figcaption { display: grid; gap: .4rem; padding: .55rem .2rem .1rem; min-width: 0; }
.answer .mel { width: 100%; height: 44px; border-radius: 6px; }
.answer audio { width: 100%; height: 34px; display: block; }
.asked { margin: 0; color: var(--ink); font-size: .98rem; overflow-wrap: anywhere; }
.asked b { font-size: .7rem; text-transform: uppercase; letter-spacing: .07em; color: var(--accent);
  margin-right: .35rem; }
.text .asked q { font-size: 1.25rem; }
.figures { margin: 0; display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-variant-numeric: tabular-nums; }
.figures b { color: var(--ink); }
.good { color: var(--good); } .bad { color: var(--bad); }
.absent .answer { display: grid; grid-template-columns: minmax(110px, 200px) minmax(0, 30rem); gap: 1rem;
  border-style: dashed; }
.absent .answer > img { filter: grayscale(.75); }
.absent .answer figcaption { align-content: center; }
.next { margin-top: 3.5rem; padding-top: 2rem; border-top: 1px solid var(--line); }
dl { margin: 1rem 0; }
dt { margin-top: 1rem; }
dd { margin: .3rem 0 0; }
pre { margin: 0; padding: .7rem .9rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow-x: auto; font: .9rem/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; }
@media (max-width: 900px) { section { grid-template-columns: minmax(0, 1fr); }
  .scene { position: static; grid-template-columns: 1fr 1fr; } .scene header { grid-column: 1 / -1; } }
@media (min-width: 1100px) { .top { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .6rem 3rem;
  align-items: start; } .top h1, .top .key { grid-column: 1 / -1; }
  .top .table { margin: 0; } th { max-width: 8.5rem; } }
@media (max-width: 600px) { main { padding: 1.4rem 1rem 3rem; }
  .row { grid-template-columns: minmax(0, 1fr); gap: .7rem; }
  .answer { display: grid; grid-template-columns: 42% minmax(0, 1fr); gap: .7rem; }
  .answer figcaption { padding: 0; align-content: start; }
  .absent .answer { grid-template-columns: 42% minmax(0, 1fr); }
  th, td { padding: .4rem .55rem; } }
"""

_KEY = """<ul class="key">
<li><svg width="26" height="10" aria-hidden="true"><rect width="26" height="10" rx="2" fill="#222"/><path d="M2 5h22"
stroke="#fff" stroke-width="2.5"/></svg>the found mask: where the heatmap is at least 0.5</li>
<li><svg width="26" height="10" aria-hidden="true"><path d="M0 5h26" stroke="var(--truth)" stroke-width="3"
stroke-dasharray="6 4"/></svg>the true mask, which the model never saw</li>
<li><b>score</b>&ensp;cosine similarity of image and prompt</li>
<li><b>IoU</b>&ensp;intersection over union of the found and the true mask, from 0 to 1</li>
</ul>"""

_NEXT = """<div class="next"><h2>What to try next</h2>
<dl>
<dt>An image of your own (mini knows only drawings like these; for photographs see below):</dt>
<dd><pre>avgrad localize PHOTO --text "a dog" --audio SOUND.wav</pre></dd>
<dt>Photographs: ImageBind, whose weights are CC-BY-NC 4.0, not for commercial use:</dt>
<dd><pre>avgrad download imagebind_huge</pre></dd>
<dt>In Python:</dt>
<dd><pre>import avgrad

localizer = avgrad.Localizer("mini")
localizer.set_image("street.jpg")
result = localizer.localize(audio="siren.wav", text=["a drum", "a bell"])
result.overlay(0).show()</pre></dd>
</dl></div>"""


def page(scenes: Sequence[SceneResult], seconds: float) -> str:
    """The page.

    Args:
        scenes: the scenes with their answers.
        seconds: the time that localizing them took.

    Returns:
        HTML that loads nothing: images and sounds are data: URIs.
    """
    answers = [answer for scene in scenes for answer in scene.answers]
    lead = (
        f"Synthetic scenes, localized by {scenes[0].result.model}, the small bundled model: "
        f"{len(answers) + len(scenes)} prompts in {len(scenes)} scenes, {seconds:.0f} seconds. The prompts are sounds, "
        "spoken phrases and texts. The model was trained on which objects are in a scene, never on where they are."
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>avgrad demo</title>
<style>{_STYLE}</style>
</head>
<body><main>
<header class="top">
<h1>Where in this image is what I hear, say or write?</h1>
<p class="lead">{escape(lead)}</p>
{_table(scenes)}
{_KEY}
</header>
{"".join(_section(scene) for scene in scenes)}
{_NEXT}
</main></body>
</html>
"""


def _table(scenes: Sequence[SceneResult]) -> str:
    """Summary of the answers, a row for each modality."""
    lines = []
    for modality in MODALITIES:
        answers = [answer for scene in scenes for answer in scene.answers if answer.modality == modality]
        absent = [scene.absent.score for scene in scenes if scene.absent.modality == modality]
        cells = (
            _PROMPTS[modality],
            str(len(answers)),
            f"{sum(bool(answer.on_object) for answer in answers)}",
            f"{mean(answer.iou or 0.0 for answer in answers):.2f}",
            f"{mean(answer.score for answer in answers):.2f}",
            f"{mean(absent):.2f}",
        )
        lines.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    titles = ("Prompts", "number", "hottest pixel on the object", "mean IoU", "mean score", "score of absent objects")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return f'<div class="table"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _section(scene: SceneResult) -> str:
    objects = [_a(obj.object_class) for obj in scene.sample.objects]
    listed = " and ".join([", ".join(objects[:-1]), objects[-1]]) if len(objects) > 1 else objects[0]
    rows = []
    for obj, colour in zip(scene.sample.objects, OBJECTS, strict=False):
        tiles = "".join(_tile(scene, scene.answer(obj, modality)) for modality in MODALITIES)
        style = f"--object: rgb{colour}"
        title = f"<h3><i></i>{escape(obj.object_class)}</h3>"
        rows.append(f'<div class="object" style="{style}">{title}<div class="row">{tiles}</div></div>')
    return f"""<section>
<div class="scene">
<header><h2>{escape(scene.sample.title)}</h2><p>{escape(listed[0].upper() + listed[1:])}.</p></header>
<figure>{_image(scene.result.image, f"The scene: {listed}.")}<figcaption>the scene</figcaption></figure>
<figure>{_image(truth_image(scene), f"True masks of {listed}.")}<figcaption>the true masks</figcaption></figure>
</div>
<div>
{"".join(rows)}
{_absent(scene)}
</div>
</section>
"""


def _tile(scene: SceneResult, answer: Answer) -> str:
    where = "on" if answer.on_object else "not on"
    alt = (
        f"Heatmap of {answer.words}: the found mask overlaps the {answer.obj.object_class} with an IoU of "
        f"{answer.iou:.2f}, the hottest pixel is {where} it."
    )
    style = "good" if answer.on_object else "bad"
    verdict = f'<span class="{style}">hottest pixel {where} the {escape(answer.obj.object_class)}</span>'
    return f"""<figure class="answer {_BY[answer.modality]}">{_image(answer_image(scene, answer), alt)}
<figcaption>{_asked(answer)}
<p class="figures"><span>score <b>{answer.score:.2f}</b></span><span>IoU <b>{answer.iou:.2f}</b></span>{verdict}</p>
</figcaption></figure>"""


def _absent(scene: SceneResult) -> str:
    """The prompt for an object that is not in the scene, and its score compared with those of objects that are."""
    answer = scene.absent
    present = [other.score for other in scene.answers if other.modality == answer.modality]
    below = sum(answer.score < score for score in present)
    compared = (
        f"lower than those of all {len(present)} objects in the scene"
        if below == len(present)
        else f"lower than those of {below} of the {len(present)} objects in the scene"
    )
    alt = f"Heatmap of {answer.words}, which is not in the scene."
    return f"""<div class="absent"><h3>Not in this image: {escape(_a(answer.obj.object_class))}</h3>
<figure class="answer {_BY[answer.modality]}">{_image(answer_image(scene, answer), alt)}
<figcaption>{_asked(answer)}
<p class="figures"><span>score <b>{answer.score:.2f}</b>, {compared}</span></p>
<span>A heatmap is min-max normalized, so something is always hot. The score tells whether the object is there.</span>
</figcaption></figure></div>"""


def _asked(answer: Answer) -> str:
    """The prompt: its words, and a sound's player and spectrogram."""
    words = escape(answer.words) if answer.modality == "audio" else f"<q>{escape(answer.words)}</q>"
    asked = f'<p class="asked"><b>{_BY[answer.modality]}</b>{words}</p>'
    if answer.modality == "text":
        return asked
    sound = answer.obj.sound if answer.modality == "audio" else answer.obj.speech
    mel = _image(log_mel_of_file(sound, (320, 64)), f"Log-mel spectrogram of {answer.words}.", "mel")
    return f'{asked}{mel}<audio controls preload="metadata" src="{_audio(sound)}"></audio>'


def _a(noun: str) -> str:
    return noun if noun == "rain" else f"a {noun}"


def _image(image: Image.Image, alt: str, style: str = "") -> str:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    data = base64.b64encode(stream.getvalue()).decode()
    name = f' class="{style}"' if style else ""
    return (
        f'<img{name} src="data:image/jpeg;base64,{data}" alt="{escape(alt)}" '
        f'width="{image.width}" height="{image.height}">'
    )


def _audio(sound: Path) -> str:
    return f"data:audio/ogg;base64,{base64.b64encode(sound.read_bytes()).decode()}"
