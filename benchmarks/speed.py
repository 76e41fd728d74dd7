"""Speed and memory: `python -m benchmarks.speed`.

All rows are timed in one process, in rounds, beside a plain forward pass of the same model by its own library and
beside the original legrad_torch where it is installed, because only ratios carry over from one machine to another. The
peak memory of each row is measured in a process of its own. Models have random weights; nothing is downloaded.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from avgrad.errors import InputError
from avgrad.files import write_atomic
from benchmarks import original
from benchmarks.bulk import measure_bulk
from benchmarks.device import DTYPES, OptionError, environment, use
from benchmarks.flops import count_flops
from benchmarks.loading import measure_load_of
from benchmarks.memory import Memory, NotMeasuredError, Specification, measure_apart
from benchmarks.models import NAMES, build, check
from benchmarks.report import Result, figures, plot, tables
from benchmarks.rows import CHOICES, Row, rows_of, task
from benchmarks.startup import measure_startup
from benchmarks.timing import time_in_rounds
from benchmarks.video import measure_video

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",")))


def _numbers(text: str, option: str) -> list[int]:
    words = _words(text)
    if any(not word.isdecimal() or int(word) < 1 for word in words):
        raise OptionError(f"{option} {text!r} is not a list of positive integers such as 1,10")
    return sorted({int(word) for word in words})


def measure(
    model: str,
    device: str,
    dtype: str,
    *,
    sizes: Sequence[int],
    batches: Sequence[int],
    prompts: Sequence[int],
    methods: Sequence[str],
    original_prompts: int,
    compiled: bool,
    memory: bool,
    rounds: int,
    notes: list[str],
) -> list[Result]:
    """All measurements of one model in one dtype.

    Args:
        model, device, dtype, sizes, batches, prompts, methods, rounds: as on the command line.
        original_prompts: the largest number of prompts legrad_torch is timed with; 0 leaves it out.
        compiled: also time rows through `torch.compile`.
        memory: measure peak memory.
        notes: one sentence is appended for whatever could not be measured.

    Raises:
        OptionError, UnsupportedModelError: an option that cannot be used.
    """
    where, torch_dtype = use(device, dtype)
    subject = build(model, where, torch_dtype)
    patch = math.lcm(*subject.view.patch_shape)
    wrong = [size for size in sizes if size % patch]
    if wrong:
        raise OptionError(f"--size {wrong[0]} is not a multiple of {patch}, the patch size of {model}")
    rows = rows_of(subject, sizes, batches, prompts, methods, original_prompts, compiled)
    if original_prompts and not any(row.kind == "original" for row in rows):
        notes.append(
            f"no original for {model}: legrad_torch is timed on open_clip models without an attention pooler, on one "
            "image at a time"
            if original.is_installed()
            else "the original is left out: legrad_torch is not installed"
        )
    tasks = {row: task(subject, row) for row in rows}
    flops = {}
    for row in tqdm(rows, desc="operations", leave=False, disable=None):
        tasks[row].keep()
        flops[row] = count_flops(tasks[row].eager)
    seconds = time_in_rounds({row: tasks[row].run for row in rows}, rounds)
    floors = {row: row.floor(subject) for row in rows}
    library, prefix, sides = subject.library, subject.view.num_prefix_tokens, subject.view.patch_shape
    del subject, tasks
    gc.collect()  # the processes that measure memory need it
    peaks: dict[Row, Memory] = {}
    if memory:
        for row in tqdm(rows, desc="memory", leave=False, disable=None):
            try:
                peaks[row] = measure_apart(Specification(model, device, dtype, torch.get_num_threads(), row))
            except NotMeasuredError as error:
                notes.append(str(error))
    return [
        Result(
            model=model,
            dtype=dtype,
            library=library,
            tokens=prefix + math.prod(row.size // side for side in sides),
            row=row,
            seconds=seconds[row],
            flops=flops[row],
            floor=floors[row],
            memory=peaks.get(row),
        )
        for row in rows
    ]


def _write_json(path: Path | None, document: dict[str, Any]) -> None:
    if path is not None:
        write_atomic(path, (json.dumps(document, indent=2) + "\n").encode())


@app.command()
def speed(
    models: Annotated[str, typer.Option(help=f"Models, comma-separated: {NAMES}.")] = "open_clip:ViT-B-16",
    methods: Annotated[str, typer.Option(help=f"Methods, comma-separated: {', '.join(CHOICES)}.")] = "legrad",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help=f"Dtypes, comma-separated: {', '.join(DTYPES)}.")] = "float32",
    batch: Annotated[str, typer.Option(help="Batch sizes, such as 1,8.")] = "1",
    prompts: Annotated[str, typer.Option(help="Numbers of prompts, such as 1,10,100.")] = "1,10",
    size: Annotated[str, typer.Option(help="Image sizes in pixels, such as 224,448. Default: the model's.")] = "",
    compiled: Annotated[bool, typer.Option("--compile", help="Also time each row through torch.compile.")] = False,
    original_prompts: Annotated[
        int, typer.Option("--original", help="Largest number of prompts for legrad_torch; 0 leaves it out.", min=0)
    ] = 10,
    memory: Annotated[bool, typer.Option(help="Peak memory of each row, in a process of its own.")] = True,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which all rows are timed.", min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="PNG file to plot time against tokens to; needs two sizes.")
    ] = None,
    bulk: Annotated[
        bool, typer.Option("--bulk", help="Measure runs over many images instead, and searching a million embeddings.")
    ] = False,
    video: Annotated[bool, typer.Option("--video", help="Measure a video end to end instead.")] = False,
    startup: Annotated[bool, typer.Option("--startup", help="Measure startup time instead.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Measure loading imagebind_huge instead.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="For --load: an imagebind_huge checkpoint. Default: random weights.")
    ] = None,
) -> None:
    """Times avgrad beside plain forward passes and the original LeGrad; prints tables."""
    if threads is not None:
        torch.set_num_threads(threads)
    if bulk:
        measured = measure_bulk(_words(models), device, _words(dtype)[0], rounds)
        where = torch.device(device)
        print(f"{environment(where)['device_name']}\n\n{measured.tables()}")
        _write_json(json_file, {**environment(where), **asdict(measured)})
        return
    if video:
        of_video = measure_video(_words(models), device, _words(dtype)[0], rounds)
        about = environment(torch.device(device))
        print(f"{about['device_name']}, {about['threads']} threads\n\n{of_video.tables()}")
        _write_json(json_file, {**about, **asdict(of_video)})
        return
    if startup or load:
        report = measure_startup(rounds) if startup else measure_load_of(checkpoint, rounds)
        print(report.tables())
        _write_json(json_file, {**environment(torch.device("cpu")), **asdict(report)})
        return
    chosen = _words(methods)
    for name in chosen:
        if name not in CHOICES:
            raise OptionError(f"--methods {name} is unknown; expected some of {', '.join(CHOICES)}")
    sizes = _numbers(size, "--size") if size else []
    if plot_file is not None and len(sizes) < 2:
        raise OptionError("--plot needs at least two image sizes, such as --size 224,448")
    names, dtypes = _words(models), _words(dtype)
    for name in names:
        check(name)
    for name in dtypes:
        where, _ = use(device, name)
    if compiled:
        if where.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            raise OptionError("--compile needs a C++ compiler; neither g++ nor clang++ was found")
        # each row is compiled for itself, and without this the compiler gives up on the ninth
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
    notes: list[str] = []
    results = []
    for model in names:
        for chosen_dtype in dtypes:
            results += measure(
                model,
                device,
                chosen_dtype,
                sizes=sizes,
                batches=_numbers(batch, "--batch"),
                prompts=_numbers(prompts, "--prompts"),
                methods=chosen,
                original_prompts=original_prompts,
                compiled=compiled,
                memory=memory,
                rounds=rounds,
                notes=notes,
            )
    notes = list(dict.fromkeys(notes))
    about = environment(where)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{about['device_name']}, {about['threads']} threads; {versions}; medians of {rounds} rounds\n")
    print(tables(results))
    for note in notes:
        print(f"\n{note}")
    _write_json(json_file, {**about, "rounds": rounds, "notes": notes, "rows": figures(results)})
    if plot_file is not None:
        smallest = min(result.row.batch for result in results)
        plot([result for result in results if result.row.batch == smallest], plot_file)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. A user's mistake is printed in one sentence."""
    try:
        app(arguments, prog_name="python -m benchmarks.speed")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
