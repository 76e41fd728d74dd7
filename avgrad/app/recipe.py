"""The Python lines that give what the page shows."""

from __future__ import annotations

from avgrad.app.image import MAX_SIDE
from avgrad.app.overlays import Display
from avgrad.app.session import Answer

_KEYWORDS = ("audio", "speech", "text")


def recipe(answer: Answer, display: Display, layer: int | None = None) -> str:
    """A program that gives the same result.

    Args:
        answer: what was found.
        display: how it is shown.
        layer: the only layer that is shown; None for all.
    """
    image, asked = answer.image, answer.questions
    sources = [image.source, *(question.source for question in asked)]
    lines = ["import avgrad"]
    if image.shrunk:
        lines.append("from avgrad.media import load_image")
    if any(source.startswith("samples()") for source in sources):
        lines.append("from avgrad.scenes.samples import samples")
    options = [repr(answer.result.model)]
    if layer is not None:
        options.append(f"layers=[{layer}]")
        if answer.localizer.correction is not None:
            options.append("correction=None")
    lines += ["", f"localizer = avgrad.Localizer({', '.join(options)})"]
    if image.shrunk:
        lines += [
            f"image = load_image({image.source})",
            f"image.thumbnail(({MAX_SIDE}, {MAX_SIDE}))",
            "localizer.set_image(image)",
        ]
    else:
        lines.append(f"localizer.set_image({image.source})")
    lines.append("result = localizer.localize(")
    for keyword in _KEYWORDS:
        given = [question.source for question in asked if question.modality == keyword]
        if given:
            lines.append(f"    {keyword}=[{', '.join(given)}],")
    lines += [
        ")",
        'result.save("out/")  # heatmaps.npz, result.json, an overlay for each prompt',
        f'result.overlay(0, opacity={display.opacity}, colormap="{display.colormap}").save("overlay.png")',
        f"mask = result.mask({display.threshold})  # bool [P, H, W]",
    ]
    return "\n".join(lines) + "\n"
