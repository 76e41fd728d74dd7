"""The benchmarks' command line: `python -m eval`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import avgrad
from avgrad.engine.methods import Pooling, list_methods, parse_layers, resolve_layers
from avgrad.errors import InputError, UnsupportedModelError
from avgrad.files import write_atomic
from avgrad.models.model import Model
from eval.compare import compare_runs
from eval.layer_ablation import METHOD, ablation_table, split
from eval.methods import parse_method
from eval.page import write_page
from eval.report import header, latex, markdown, table, write_results
from eval.runner import Settings, Timing, evaluate, process_group, rank_and_world
from eval.store import RunFolder
from eval.task import TASKS, DataError, Task, get_task, list_tasks

HELP = """The field's benchmarks: `python -m eval NAME --data ROOT --model M --method ... --out RUN`.

A run that was killed is resumed by the same command. Under torchrun (`torchrun --nproc-per-node 4 -m eval NAME ...`)
the work is split over processes, GPUs and hosts, with the same results.
"""
METHOD_HELP = (
    f"repeatable; one of {'|'.join(list_methods())}, with options as NAME:option=value, such as legrad:relu=false; by "
    "default mostly legrad, cosine and raw_attention"
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=HELP, no_args_is_help=True)


def benchmark(
    model: Model,
    task: Task,
    out: Path,
    settings: Settings,
    arguments: dict[str, object],
    workers: int = 2,
    strict: bool = False,
    with_latex: bool = False,
) -> None:
    """Evaluate a model and write the report; every process of torchrun calls this.

    Args:
        model: on its device.
        task: the benchmark.
        out: the run's folder.
        settings: how to evaluate.
        arguments: of the command line, kept in the results.
        workers: processes that load data.
        strict: whether any problem with the data is an error.
        with_latex: whether to print the table in LaTeX too.

    Raises:
        DataError: with `strict` there is a problem.
        RunError: the folder holds another run, or no item could be evaluated.
    """
    from tqdm import tqdm

    def notice(text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    folder, timing = evaluate(model, task, out, settings, arguments, workers, strict, notice)
    if rank_and_world()[0] > 0:
        return
    began = time.perf_counter()
    measures, kind = folder.measures(), type(task)
    if strict and measures.problems:  # of batches evaluated before without --strict
        raise DataError(f"{measures.problems[0]}; --strict accepts none")
    rows, ablation = split(folder.manifest, kind.summarize(measures))
    content = write_results(folder, kind, measures, rows, ablation)
    write_page(folder.path / "report.html", kind, content, rows, task.examples(measures, rows[0]), ablation)
    columns, lines = header(kind, rows), table(kind, model.name, rows)
    print(f"\n{markdown(columns, lines)}\n")
    if with_latex:
        print(f"{latex(columns, lines)}\n")
    if ablation:
        print(f"legrad from each layer on:\n\n{markdown(*ablation_table(kind, ablation))}\n")
    for problem, count in content["problems"]["counts"].items():
        print(f"{problem}: {count}")
    print(f"{len(measures)} of {task.num_rows} rows evaluated; see {folder.path / 'report.html'}")
    _print_timing(folder, timing, time.perf_counter() - began, workers)


def _print_timing(folder: RunFolder, timing: Timing, summary_seconds: float, workers: int) -> None:
    """Prints the run's time beside the model's own, and keeps both beside the results."""
    if not timing.items:
        return
    whole = timing.seconds + summary_seconds
    memory = _peak_memory_gib()
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    graphics = max((torch.cuda.max_memory_allocated(device) / 2**30 for device in devices), default=0.0)
    print(
        f"{timing.items} items: {timing.model_seconds:.1f} s in the model and the methods, {whole:.1f} s in all "
        f"(ratio {whole / timing.model_seconds:.2f}; summary and report {summary_seconds:.1f} s)"
        + (f"; peak memory {memory:.1f} GiB" if memory else "")
        + (f", {graphics:.1f} GiB on the GPU" if graphics else "")
    )
    content = {
        **vars(timing),
        "summary_seconds": summary_seconds,
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


def make_task(kind: type[Task], data: Path | None, limit: int | None, options: Sequence[str]) -> Task:
    """A benchmark with options written as `NAME=VALUE`.

    Raises:
        InputError: there is no such option, or a value is of another type.
        DataError: the data cannot be used.
    """
    given: dict[str, Any] = {}
    for text in options:
        name, _, value = text.partition("=")
        if name not in kind.options:
            known = ", ".join(kind.options) or "none"
            raise InputError(f"{kind.name} has no option {name!r}; its options: {known}")
        try:
            given[name] = type(kind.options[name])(value)
        except ValueError:
            raise InputError(f"option {text!r}: {value!r} is not a whole number") from None
    return kind(data, limit, **given)  # type: ignore[arg-type]


def _command(name: str) -> Callable[..., None]:
    """The command that runs a task."""
    kind = get_task(name)

    def run(
        out: Annotated[Path, typer.Option(help="the run's folder: a new one, or one to resume")],
        data: Annotated[Path | None, typer.Option(help="the data set's folder, where the benchmark needs one")] = None,
        model: Annotated[str, typer.Option(help="name for avgrad.load")] = "mini",
        checkpoint: Annotated[Path | None, typer.Option(help="file with the model's weights")] = None,
        method: Annotated[
            list[str] | None,
            typer.Option(help=METHOD_HELP),
        ] = None,
        option: Annotated[
            list[str] | None,
            typer.Option(help="repeatable; NAME=VALUE, the benchmark's own: `python -m eval list` shows them"),
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
        dtype: Annotated[
            str, typer.Option(help="of the weights: float32, bfloat16, float16, float64, or auto")
        ] = "float32",
        limit: Annotated[int | None, typer.Option(min=1, help="evaluate only the first items")] = None,
        layer_ablation: Annotated[
            bool, typer.Option("--layer-ablation", help="measure legrad from each further layer on as well")
        ] = False,
        strict: Annotated[bool, typer.Option("--strict", help="any problem with the data is an error")] = False,
        with_latex: Annotated[bool, typer.Option("--latex", help="print the table in LaTeX too")] = False,
    ) -> None:  # fmt: skip
        try:
            chosen = parse_layers(layers)
        except InputError as error:
            raise typer.BadParameter(str(error), param_hint="--layers") from None
        if kind.needs_data and data is None:
            raise typer.BadParameter("the data set's folder is missing; see `python -m eval list`", param_hint="--data")
        if method and not kind.default_methods:
            raise typer.BadParameter(f"{name} explains in its own way; leave it out", param_hint="--method")
        methods = tuple(method or kind.default_methods)
        try:
            for text in methods:
                parse_method(text)
        except InputError as error:
            raise typer.BadParameter(str(error), param_hint="--method") from None
        if layer_ablation and METHOD not in methods:
            raise typer.BadParameter(f"it needs --method {METHOD}", param_hint="--layer-ablation")
        settings = Settings(
            methods=tuple(dict.fromkeys(methods)),
            layers=tuple(chosen) if isinstance(chosen, list) else chosen,
            pooling=pooling,
            batch_size=batch_size,
            threads=threads,
            layer_ablation=layer_ablation,
        )
        arguments: dict[str, object] = {
            "data": None if data is None else str(data),
            "model": model,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "limit": limit,
        }
        try:
            task = make_task(kind, data, limit, option or ())
            towers = ("vision", *task.modalities)
            loaded = avgrad.load(
                model, checkpoint=checkpoint, device=device or _default_device(), dtype=dtype, towers=towers
            )
            missing = [modality for modality in task.modalities if modality not in loaded.modalities]
            if missing:
                taken = ", ".join(loaded.modalities) or "no"
                raise UnsupportedModelError(f"{model} takes {taken} prompts; {name} needs {' and '.join(missing)}")
            try:
                resolve_layers(chosen, len(loaded.vision.blocks))
            except InputError as error:
                raise typer.BadParameter(str(error), param_hint="--layers") from None
            with process_group():
                benchmark(loaded, task, out, settings, arguments, workers, strict, with_latex)
        except InputError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None

    return run


@app.command("list")
def list_command() -> None:
    """What each benchmark measures, where its data are available, and the files that it expects."""
    for name in list_tasks():
        kind = get_task(name)
        layout = "\n".join(f"            {line}" for line in kind.layout.splitlines()).strip()
        print(f"{name}\n  measures  {kind.measures}\n  data      {kind.source}\n  layout    {layout}")
        if kind.options:
            print(f"  options   {', '.join(f'{option}={value}' for option, value in kind.options.items())}")
        print()


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="folder of a finished run")],
    run_b: Annotated[Path, typer.Argument(help="folder of another, over the same data")],
    method_a: Annotated[str | None, typer.Option(help="only this method of the first run")] = None,
    method_b: Annotated[str | None, typer.Option(help="only this method of the second run")] = None,
    replicates: Annotated[int, typer.Option(min=100, help="of the bootstrap")] = 1000,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    with_latex: Annotated[bool, typer.Option("--latex", help="print the table in LaTeX too")] = False,
) -> None:
    """Compare two runs, with a paired bootstrap over images.

    By default every method that both runs have is compared, for each variant.
    """
    try:
        print(compare_runs(run_a, run_b, method_a, method_b, replicates, seed, with_latex))
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


for _name in list_tasks():
    app.command(_name, help=f"Measures {TASKS[_name].measures}.")(_command(_name))

if __name__ == "__main__":
    app(prog_name="python -m eval")
