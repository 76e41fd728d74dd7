"""The avgrad command: the library's public face, one line at a time."""

from __future__ import annotations

import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from avgrad.localization import Localization

app = typer.Typer(
    help="Where in this image is the thing that I hear, say or write?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command; a user's mistake ends in one sentence and exit status 2."""
    logging.disable(logging.ERROR)  # what other libraries log on the way; the sentence below says what matters
    try:
        app()
    except ValueError as error:
        if type(error).__module__.partition(".")[0] != "avgrad":  # not one of our own: a defect, and shown as one
            raise
        print(f"avgrad: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _note(text: str) -> None:
    print(f"avgrad: {text}", file=sys.stderr)


def _layers(text: str | None) -> int | list[int] | None:
    if text is None or text == "all":
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither 'all', a number nor numbers such as 3,5,7") from None
    return numbers[0] if len(numbers) == 1 and "," not in text else numbers


@app.command()
def localize(
    image: Annotated[Path, typer.Argument(help="The image.")],
    audio: Annotated[list[Path] | None, typer.Option(help="A sound to look for; may be given several times.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Words to look for; may be given several times.")] = None,
    speech: Annotated[list[Path] | None, typer.Option(help="Recorded words to look for; several times.")] = None,
    image_prompt: Annotated[
        list[Path] | None, typer.Option("--image", help="An image of what to look for; several times.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="mini, imagebind_huge, open_clip:ARCHITECTURE/WEIGHTS or timm:NAME (its words are classes). "
            "Default: imagebind_huge if here."
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File with the model's weights.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for overlays, heatmaps.npz and result.json.")] = Path("avgrad_out"),
    template: Annotated[
        list[str] | None, typer.Option(help="Text around each word, as in 'a photo of a {}'; several are averaged.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="How heatmaps are made: legrad (the default), raw_attention, rollout, gradcam, ...; given several "
            "times, each has a folder of its own in --out, and methods.png shows them side by side."
        ),
    ] = None,
    layers_grid: Annotated[
        bool, typer.Option("--layers-grid", help="Also write layers.png: each layer's map.")
    ] = False,
    layers: Annotated[
        str | None, typer.Option(help="all, K: from layer K, -K: the last K, or a list such as 3,5,7.")
    ] = None,
    pooling: Annotated[str, typer.Option(help="What a layer's score is of: mean or cls.")] = "mean",
    size: Annotated[
        int | None, typer.Option(help="Short side in pixels that the network sees.", min=16, max=4096)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Looks for sounds, spoken words, texts and images in an image; writes an overlay and a heatmap for each."""
    if not (audio or text or speech or image_prompt):
        raise typer.BadParameter("nothing to look for: give --audio FILE, --speech FILE, --text WORDS or --image FILE")
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out {out} is a file; a folder is expected")
    if pooling not in ("mean", "cls"):
        raise typer.BadParameter(f"--pooling {pooling} is neither mean nor cls")
    which = _layers(layers)
    started = time.perf_counter()
    import torch

    from avgrad.engine.methods import check_pooling, list_methods, resolve_layers
    from avgrad.localizer import Localizer
    from avgrad.media import load_image
    from avgrad.models.checkpoints import checkpoint_path
    from avgrad.models.registry import load

    methods = list(dict.fromkeys(method or ["legrad"]))
    for name in methods:
        if name not in list_methods():
            raise typer.BadParameter(f"--method {name} is unknown; there are {', '.join(list_methods())}")
    number_type = getattr(torch, dtype, None)
    if number_type not in (torch.float32, torch.bfloat16, torch.float16):
        raise typer.BadParameter(f"--dtype {dtype} is not float32, bfloat16 or float16")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise typer.BadParameter(f"--device {device} is not on this machine; cpu is, for example") from None
    seconds = {"import": time.perf_counter() - started}
    if model is None:
        model = "imagebind_huge" if checkpoint or checkpoint_path("imagebind_huge").exists() else "mini"
        if model == "mini":
            _note(
                "using mini, the bundled model: it knows the synthetic scenes it was trained on, not the world. "
                "`avgrad download imagebind_huge` gets the real one."
            )
    loaded_image = load_image(image)  # first, so that one that cannot be read is said before a large model is loaded
    towers = ["vision", *(["audio"] if audio or speech else []), *(["text"] if text else [])]
    started = time.perf_counter()
    loaded = load(model, checkpoint=checkpoint, device=device, dtype=number_type, towers=towers)
    seconds["load"] = time.perf_counter() - started
    try:
        resolve_layers(which, len(loaded.vision.blocks))
    except ValueError as error:
        raise typer.BadParameter(f"--layers {error}") from None
    try:
        check_pooling(pooling, loaded.vision)
    except ValueError as error:
        raise typer.BadParameter(f"--pooling: {error}") from None
    results: list[Localization] = []
    for name in methods:
        localizer = Localizer(loaded, method=name, layers=which, pooling=pooling, size=size, keep=False)  # type: ignore[arg-type]
        localizer.set_image(loaded_image)
        if results:
            results.append(localizer.localize(prompts=results[0].prompts))
        else:
            results.append(
                localizer.localize(
                    audio=audio, text=text, speech=speech, image_prompts=image_prompt, templates=template or ("{}",)
                )
            )
        results[-1].seconds.update(seconds)
    try:
        _save(results, out, layers_grid, image=str(image), device=device, dtype=dtype)
    except OSError as error:
        raise typer.BadParameter(f"--out {out} cannot be written: {error.strerror}") from None
    for result in results:
        _print(result)
    print(f"\nwritten to {out}")


def _save(results: list[Localization], out: Path, layers_grid: bool, **more: Any) -> None:
    """One result into `out`, or each of several into a folder of its own, and the images that show them together."""
    from avgrad.files import write_atomic
    from avgrad.panels import layer_panel, method_panel

    for result in results:
        folder = out if len(results) == 1 else out / result.method
        result.save(folder, **more, peak_memory_bytes=_peak_memory())
        if layers_grid:
            write_atomic(folder / "layers.png", partial(layer_panel(result).save, format="PNG"))
    if len(results) > 1:
        write_atomic(out / "methods.png", partial(method_panel(results).save, format="PNG"))


def _peak_memory() -> int | None:
    """The largest resident memory of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _print(result: Localization) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{result.model}, {result.method}")
    for column, justify in (("prompt", "left"), ("by", "left"), ("score", "right"), ("peak at x, y", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for index, (prompt, score) in enumerate(zip(result.prompts, result.scores, strict=True)):
        x, y = result.peak(index)
        table.add_row(escape(prompt.label), prompt.modality, f"{score:.3f}", f"{x}, {y}")
    Console().print(table)


@app.command()
def models() -> None:
    """Lists the models that can be loaded, and whether their weights are here."""
    from rich.console import Console
    from rich.table import Table

    from avgrad.models.registry import entries

    table = Table()
    table.add_column("model", overflow="fold")
    table.add_column("prompts")
    table.add_column("weights", overflow="fold")
    for entry in entries():
        table.add_row(entry.name, ", ".join(entry.modalities), entry.weights)
    Console().print(table)


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="imagebind_huge")] = "imagebind_huge",
) -> None:
    """Fetches the official ImageBind checkpoint (its weights are CC-BY-NC 4.0: not for commercial use)."""
    if model != "imagebind_huge":
        raise typer.BadParameter(
            f"{model} needs no download: mini is bundled, and open_clip fetches its own models when they are first used"
        )
    from avgrad.models.download import download_imagebind

    download_imagebind()


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist.")],
    n: Annotated[int, typer.Option(help="Number of scenes.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Of all scenes; scene i depends on the seed and i alone.", min=0)] = 0,
    prompt: Annotated[Literal["sound", "speech"], typer.Option(help="What the prompts are.")] = "sound",
) -> None:
    """Writes synthetic scenes with exact masks in the layout of the ADE20K Sound- and Speech-Prompted data sets."""
    from avgrad.scenes.dataset import write_dataset

    try:
        write_dataset(out, n, seed, prompt)
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be written: {error.strerror}") from None


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the page and the images.")] = Path("avgrad_demo"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Looks for sounds, spoken words and texts in the sample scenes; writes a page and images (needs no network)."""
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file; a folder is expected")
    from avgrad.demo import run

    try:
        result = run(out)
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be written: {error.strerror}") from None
    print(result)
    if show:
        typer.launch(result.page.resolve().as_uri())


@app.command("app")
def browser_page(
    port: Annotated[int, typer.Option(help="Where the page is served.", min=1, max=65535)] = 8501,
    address: Annotated[
        str, typer.Option(help="localhost: for this machine alone; 0.0.0.0: for the network.")
    ] = "localhost",
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serves the page on which one records or uploads a sound and looks where it is."""
    from avgrad.app.server import serve

    serve(port, address, show)


if __name__ == "__main__":
    main()
