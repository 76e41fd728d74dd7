"""`avgrad localize`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from avgrad.cli import app, check_folder, note
from avgrad.errors import InputError, out_of_memory

if TYPE_CHECKING:
    from avgrad.localization import Localization
    from avgrad.localizer import Localizer
    from avgrad.models.model import Model


def _options(methods: Sequence[str], texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each method: each text goes to the methods that have such an option."""
    from avgrad.engine.methods import get_method, parse_option

    options: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for text in texts:
        option = text.partition("=")[0].strip()
        takers = [name for name in methods if option in get_method(name).options] or list(methods)
        for name in takers:
            options[name].update([parse_option(name, text)])
    return options


@app.command()
def localize(
    source: Annotated[
        list[str],
        typer.Argument(
            help="An image or a video. Or many images: files, folders, globs, tables (.csv, .jsonl, .parquet), .tar "
            "shards, saved Hugging Face datasets."
        ),
    ],
    audio: Annotated[list[Path] | None, typer.Option(help="A sound to locate; may be given several times.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to locate; several times.")] = None,
    speech: Annotated[list[Path] | None, typer.Option(help="Recorded words to locate; several times.")] = None,
    image_prompt: Annotated[
        list[Path] | None, typer.Option("--image", help="An image of what to locate; several times.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model of `avgrad models`. Default: imagebind_huge if it was downloaded, else mini."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File with the model's weights.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("avgrad_out"),
    template: Annotated[
        list[str] | None, typer.Option(help="Text around each text, as in 'a photo of a {}'; several are averaged.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="How heatmaps are made: legrad (the default), raw_attention, rollout, gradcam, ...; given several "
            "times, each has a folder of its own in --out, and methods.png shows them side by side."
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A method's own option, NAME=VALUE, such as relu=false; several times.")
    ] = None,
    layers_grid: Annotated[
        bool, typer.Option("--layers-grid", help="Also write layers.png: each layer's map.")
    ] = False,
    layers: Annotated[str, typer.Option(help="all, K: from layer K, -K: the last K, or a list such as 3,5,7.")] = "all",
    pooling: Annotated[Literal["mean", "cls"], typer.Option(help="What a layer's score is of.")] = "mean",
    size: Annotated[
        int | None, typer.Option(help="Short side in pixels that the network sees.", min=16, max=4096)
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(help="Make heatmaps follow the image's edges: guided, grabcut, random_walker or sam2."),
    ] = None,
    presence: Annotated[
        Literal["auto", "reference"],
        typer.Option(
            help="Where the probability that a prompt is in the image comes from: a calibration of the model, if there "
            "is one, or a comparison with everyday names."
        ),
    ] = "auto",
    absent: Annotated[
        Literal["color", "grey"], typer.Option(help="How overlays show prompts that are probably absent.")
    ] = "color",
    overlays: Annotated[
        int | None,
        typer.Option(
            help="Write overlays of so many prompts, the first ones. Default: 32; of many images none.", min=0
        ),
    ] = None,
    heatmaps: Annotated[
        bool, typer.Option("--heatmaps", help="Also write heatmaps of the image's size into heatmaps.npz.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, float64, or auto: bfloat16 where it is faster.")
    ] = "auto",
    fps: Annotated[float, typer.Option(help="Of a video: frames that are analysed, per second.")] = 4.0,
    track: Annotated[int, typer.Option(help="Of a video: number of the sound track, from 0.", min=0)] = 0,
    smoothing: Annotated[float, typer.Option(help="Of a video: seconds to average over; 0 for not.")] = 0.0,
    own_sound: Annotated[
        bool | None,
        typer.Option(
            "--own-sound/--no-own-sound",
            help="Of a video: whether its own sound is located. Default: where no prompt is given.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Of many images: how many share a forward pass.", min=1)] = 16,
    workers: Annotated[int, typer.Option(help="Of many images: threads that decode.", min=1)] = 2,
    shard_size: Annotated[int, typer.Option(help="Of many images: rows per file of results.", min=1)] = 512,
    ray: Annotated[
        str | None, typer.Option(help="Of many images: 'local', or the address of a Ray cluster to run on.")
    ] = None,
) -> None:
    """Locates sounds, spoken words, texts and images in an image or a video; of a video also its own sound.

    For an image it writes overlays, heatmaps.npz and result.json. For a video it writes heatmap.mp4, timeline.png,
    timeline.parquet, timeline.json and heatmaps.npz; stopped by Ctrl-C, it goes on by the same command. For many images
    it writes a run: Parquet files with scores, peaks, boxes, maps and embeddings, which `avgrad find` searches; it goes
    on by the same command, too.
    """
    check_folder(out, "--out")
    started = time.perf_counter()
    from avgrad.bulk.sources import is_collection
    from avgrad.encoders.text import check_templates, check_texts
    from avgrad.engine.methods import check_options, parse_layers
    from avgrad.media.video import is_video
    from avgrad.refine import check_refinement

    # what can be checked without a model is checked before a large one is loaded
    methods = list(dict.fromkeys(method or ["legrad"]))
    options = _options(methods, option or [])
    for name in methods:
        check_options(name, options[name])
    if refine is not None:
        check_refinement(refine, {})
    check_texts(text or [])
    request = Request(
        source=Path(source[0]),
        out=out,
        prompts={
            "audio": audio,
            "text": text,
            "speech": speech,
            "image": image_prompt,
            "templates": check_templates(template or "{}"),
        },
        model=model,
        checkpoint=checkpoint,
        device=device,
        dtype=dtype,
        methods=options,
        refine=refine,
        settings={
            "layers": parse_layers(layers),
            "pooling": pooling,
            "size": size,
            "keep": False,
            "presence": presence,
        },
        absent=None if absent == "color" else absent,
        seconds={"import": time.perf_counter() - started},
    )
    if is_collection(source):
        from avgrad.cli.bulk import localize_collection

        if layers_grid:
            raise InputError("--layers-grid is for one image")
        localize_collection(
            request,
            source,
            overlays or 0,
            heatmaps,
            batch_size=batch_size,
            workers=workers,
            shard_size=shard_size,
            ray=ray,
        )
    elif ray is not None:
        raise InputError(f"--ray is for many images, and {source[0]} is one")
    elif is_video(request.source):
        from avgrad.cli.video import localize_video_file

        localize_video_file(request, fps=fps, track=track, smoothing=smoothing, own_sound=own_sound)
    else:
        _localize_image(request, layers_grid, 32 if overlays is None else overlays, heatmaps)


def default_model(checkpoint: Path | None = None) -> str:
    """imagebind_huge where its weights are here, else mini; says which."""
    from avgrad.models.checkpoints import checkpoint_path

    if checkpoint or checkpoint_path("imagebind_huge").exists():
        note("using imagebind_huge")
        return "imagebind_huge"
    note(
        "using mini, the bundled model: it knows the synthetic scenes it was trained on, not the world. "
        "`avgrad download imagebind_huge` gets the real one."
    )
    return "mini"


@dataclass(frozen=True)
class Request:
    """What was asked for, checked as far as it can be without a model.

    Attributes:
        source: the image or video, or the first source.
        out: folder of the results.
        prompts: arguments of `Localizer.localize`.
        model: name of the model; None for the default.
        checkpoint, device, dtype: of the model.
        methods: their options by name, in the order given.
        refine: the refinement of heatmaps; None for none.
        settings: further arguments of `Localizer`.
        absent: as in `Localization.overlay`.
        seconds: what each stage took so far.
    """

    source: Path
    out: Path
    prompts: dict[str, Any]
    model: str | None
    checkpoint: Path | None
    device: str
    dtype: str
    methods: dict[str, dict[str, Any]]
    refine: str | None
    settings: dict[str, Any]
    absent: Literal["grey"] | None
    seconds: dict[str, float]

    @property
    def has_prompts(self) -> bool:
        """Whether there is a prompt."""
        return any(self.prompts[name] for name in ("audio", "text", "speech", "image"))

    def load(self, own_sound: bool = False, all_towers: bool = False) -> Model:
        """The model with the towers that the prompts need.

        Args:
            own_sound: whether a video's own sound is a prompt, too.
            all_towers: whether there may be further prompts of any modality.
        """
        from avgrad.models.registry import load

        name = self.model or default_model(self.checkpoint)
        sounds = all_towers or own_sound or self.prompts["audio"] or self.prompts["speech"]
        texts = all_towers or self.prompts["text"] or self.settings["presence"] == "reference"
        towers = ["vision", *(["audio"] if sounds else []), *(["text"] if texts else [])]
        started = time.perf_counter()
        loaded = load(name, checkpoint=self.checkpoint, device=self.device, dtype=self.dtype, towers=towers)
        self.seconds["load"] = time.perf_counter() - started
        return loaded

    def localizer(self, model: Model, method: str) -> Localizer:
        """A localizer by one of the methods."""
        from avgrad.localizer import Localizer

        return Localizer(model, method=method, **self.settings, **self.methods[method])


def _localize_image(request: Request, layers_grid: bool, overlays: int, heatmaps: bool) -> None:
    if not request.has_prompts:
        raise InputError("there is no prompt; give --audio FILE, --speech FILE, --text WORDS or --image FILE")
    from avgrad.media import load_image, source_name

    image, out = load_image(request.source), request.out
    model = request.load()
    results: list[Localization] = []
    for name in request.methods:
        localizer = request.localizer(model, name)
        localizer.set_image(image)
        result = localizer.localize(**({"prompts": results[0].prompts} if results else request.prompts))
        result = result if request.refine is None else result.refine(request.refine)
        seconds = {**result.seconds, **request.seconds}
        results.append(replace(result, name=source_name(request.source), seconds=seconds))
    try:
        _save(results, request, layers_grid, overlays, heatmaps)
    except OSError as error:
        if out_of_memory(error):
            raise
        raise InputError(f"--out {out} cannot be written ({error.strerror or error})") from None
    for result in results:
        _print(result)
    print(f"\nwritten to {out}")
    if len(results[0].prompts) > overlays:
        note(f"overlays of the first {overlays} of {len(results[0].prompts)} prompts; --overlays N writes more")


def _save(results: list[Localization], request: Request, layers_grid: bool, overlays: int, heatmaps: bool) -> None:
    """One result into `out`, or each of several into a folder of its own, and the images that show them together."""
    from avgrad.files import write_atomic
    from avgrad.panels import layer_panel, method_panel

    out, absent = request.out, request.absent
    for result in results:
        folder = out if len(results) == 1 else out / result.method
        result.save(folder, overlays=overlays, heatmaps=heatmaps, absent=absent, peak_memory_bytes=_peak_memory())
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
    columns = ["prompt", "by", "score", *([] if result.presence is None else ["present"]), "peak at x, y"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("prompt", "by") else "right")
    for index, (prompt, score) in enumerate(zip(result.prompts, result.scores, strict=True)):
        x, y = result.peak(index)
        present = [] if result.presence is None else [f"{100 * float(result.presence[index]):.0f} %"]
        table.add_row(escape(prompt.label), prompt.modality, f"{score:.3f}", *present, f"{x}, {y}")
    Console().print(table)
