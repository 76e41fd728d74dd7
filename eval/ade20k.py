"""The ADE20K Sound- and Speech-Prompted benchmark of DenseAV (Hamilton et al., CVPR 2024).

    python -m eval.ade20k --data ROOT --prompt sound --model mini --out RUN
    torchrun --nproc-per-node 4 -m eval.ade20k ...        the same over 4 processes, GPUs or hosts

A run that was killed is resumed by the same command.
"""

from __future__ import annotations

import json
import os
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, cast

import torch
import typer

import avgrad
from avgrad.engine.methods import Pooling, list_methods, parse_layers, resolve_layers
from avgrad.errors import InputError, UnsupportedModelError
from avgrad.files import write_atomic
from eval.ade20k_data import Ade20k, Prompt
from eval.dataset import DataError
from eval.report import HEADER, Published, latex, markdown, table, write_page
from eval.results import NORMALIZATIONS, Normalization, score, write_results
from eval.runner import Settings, SoundModel, Timing, evaluate, process_group, rank_and_world
from eval.store import RunFolder

_LEGRAD_PAPER = "Bousselham et al., ICCV 2025"
PUBLISHED: dict[Prompt, list[Published]] = {
    "sound": [
        Published("DenseAV", 32.7, 24.2, _LEGRAD_PAPER),
        Published("ImageBind + LeGrad", 48.0, 38.9, _LEGRAD_PAPER),
    ],
    "speech": [
        Published("DenseAV", 48.7, 36.8, _LEGRAD_PAPER),
        Published("ImageBind + LeGrad", 23.3, 21.8, _LEGRAD_PAPER),
    ],
}

# typer accepts lists of choices as enumerations only
MethodName = Enum("MethodName", {name: name for name in list_methods()}, type=str)  # type: ignore[misc]
NormalizationName = Enum("NormalizationName", {name: name for name in NORMALIZATIONS}, type=str)  # type: ignore[misc]


def benchmark(
    model: SoundModel,
    data: Ade20k,
    out: Path,
    settings: Settings,
    arguments: dict[str, object],
    normalizations: tuple[Normalization, ...] = NORMALIZATIONS,
    workers: int = 2,
    strict: bool = False,
    with_latex: bool = False,
) -> None:
    """Evaluate a model and write the report; every process of torchrun calls this.

    Args:
        model: on its device.
        data: the benchmark's data.
        out: the run's folder.
        settings: how to evaluate.
        arguments: of the command line, kept in the results.
        normalizations: of the heatmaps; each has its own rows.
        workers: processes that load data.
        strict: whether any problem with the data is an error.
        with_latex: whether to print the table in LaTeX too.

    Raises:
        DataError: nothing could be evaluated, or with `strict` there is a problem.
        RunError: the folder holds another run.
    """
    from tqdm import tqdm

    def notice(text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    folder, timing = evaluate(model, data, out, settings, arguments, workers, strict, notice)
    if rank_and_world()[0] > 0:
        return
    began = time.perf_counter()
    records = folder.records()
    if strict and records.problems:  # of batches evaluated before without --strict
        raise DataError(f"{records.problems[0]}; --strict accepts none")
    figures = score(records, data.timings, data.side, normalizations)
    content = write_results(folder, records, figures)
    published = PUBLISHED[data.prompt]
    write_page(folder.path / "report.html", content, records, figures, published, data.image)
    rows = table(model.name, figures, published)
    print(f"\n{markdown(HEADER, rows)}\n")
    if with_latex:
        print(f"{latex(HEADER, rows)}\n")
    problems = content["problems"]
    for kind, count in problems["counts"].items():
        print(f"{kind}: {count}")
    print(f"{len(records.rows)} of {data.num_rows} rows evaluated; see {folder.path / 'report.html'}")
    _tell_timing(folder, timing, time.perf_counter() - began, workers)


def _tell_timing(folder: RunFolder, timing: Timing, scoring_seconds: float, workers: int) -> None:
    """Prints the run's time beside the model's own, and keeps both beside the results."""
    if not timing.items:
        return
    whole = timing.seconds + scoring_seconds
    memory = _peak_memory_gib()
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    graphics = max((torch.cuda.max_memory_allocated(device) / 2**30 for device in devices), default=0.0)
    print(
        f"{timing.items} items: {timing.model_seconds:.1f} s in the model and the methods, {whole:.1f} s in all "
        f"(ratio {whole / timing.model_seconds:.2f}; scores and report {scoring_seconds:.1f} s)"
        + (f"; peak memory {memory:.1f} GiB" if memory else "")
        + (f", {graphics:.1f} GiB on the GPU" if graphics else "")
    )
    content = {
        **vars(timing),
        "scoring_seconds": scoring_seconds,
        "whole_seconds": whole,
        "ratio": whole / timing.model_seconds,
        "memory_gib": memory,
        "gpu_memory_gib": graphics,
        "workers": workers,
        "processes": rank_and_world()[1],
    }
    write_atomic(folder.path / "timing.json", (json.dumps(content, indent=1) + "\n").encode())


def _peak_memory_gib() -> float | None:
    """The largest resident memory of this process so far; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


HELP = """The ADE20K Sound- and Speech-Prompted benchmark of DenseAV (Hamilton et al., CVPR 2024).

A run that was killed is resumed by the same command. Under torchrun the work is split over processes, GPUs and hosts,
with the same results.
"""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=HELP)
def main(
    data: Annotated[Path, typer.Option(help="folder that holds prompted_segmentation.csv, or the one around it")],
    prompt: Annotated[Prompt, typer.Option(help="sound or speech")],
    out: Annotated[Path, typer.Option(help="the run's folder: a new one, or one to resume")],
    model: Annotated[str, typer.Option(help="name for avgrad.load")] = "mini",
    checkpoint: Annotated[Path | None, typer.Option(help="file with the model's weights")] = None,
    method: Annotated[
        list[MethodName] | None, typer.Option(help="repeat for several; by default legrad, cosine and raw_attention")
    ] = None,
    normalization: Annotated[
        list[NormalizationName] | None, typer.Option(help="of the heatmaps; by default both")
    ] = None,
    layers: Annotated[str, typer.Option(help="all, a first layer k, the last -k, or a list k,l,m")] = "all",
    pooling: Annotated[Pooling, typer.Option(help="tokens that a layer's score is of")] = "mean",
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    workers: Annotated[int, typer.Option(min=1, help="processes that load data, per process")] = 2,
    threads: Annotated[
        int,
        typer.Option(min=1, help="CPU threads per process; the last bits of the results depend on it, "
                     "not on the number of processes"),
    ] = 1,
    device: Annotated[str, typer.Option(help="such as cpu or cuda:0; by default a GPU if available")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="evaluate only the first items")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="any problem with the data is an error")] = False,
    with_latex: Annotated[bool, typer.Option("--latex", help="print the table in LaTeX too")] = False,
) -> None:  # fmt: skip
    try:
        chosen = parse_layers(layers)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--layers") from None
    methods = tuple(m.value for m in method or ()) or Settings().methods
    settings = Settings(
        methods=tuple(dict.fromkeys(methods)),
        layers=tuple(chosen) if isinstance(chosen, list) else chosen,
        pooling=pooling,
        batch_size=batch_size,
        threads=threads,
    )
    arguments: dict[str, object] = {
        "data": str(data),
        "prompt": prompt,
        "model": model,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "limit": limit,
    }
    normalizations = tuple(dict.fromkeys(n.value for n in normalization or ())) or NORMALIZATIONS
    try:
        dataset = Ade20k(data, prompt, limit)
        loaded = avgrad.load(
            model, checkpoint=checkpoint, device=device or _default_device(), towers=("vision", "audio")
        )
        if "audio" not in loaded.modalities:
            raise UnsupportedModelError(f"{model} has no audio encoder; an ImageBind model is expected")
        try:
            resolve_layers(chosen, len(loaded.vision.blocks))
        except InputError as error:
            raise typer.BadParameter(str(error), param_hint="--layers") from None
        with process_group():
            benchmark(
                cast("SoundModel", loaded),
                dataset,
                out,
                settings,
                arguments,
                normalizations,
                workers,
                strict,
                with_latex,
            )
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
