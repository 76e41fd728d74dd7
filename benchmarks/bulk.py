"""Bulk work: images per second from files to rows beside the model's own, and searching a million embeddings.

`python -m benchmarks.speed --bulk`. Images are generated JPEGs of photographs' size; models have random weights.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tqdm import tqdm

from avgrad import Localizer, Prompt
from avgrad.bulk import localize_all
from avgrad.bulk.index import nearest
from avgrad.engine.attribute import explain
from avgrad.media import load_image
from avgrad.scenes.samples import samples
from benchmarks.device import use
from benchmarks.models import build
from benchmarks.tables import markdown

SIZE = 640, 480  # of an image in pixels
BATCH = 16
BATCHES = 4  # in a run
ROWS, WIDTH, TOP = 1_000_000, 1024, 20  # of the search


@dataclass(frozen=True)
class BulkReport:
    """What was measured.

    Attributes:
        title: how.
        rates: for each model, images per second of the model alone and from files to rows, and their ratio.
        find_seconds: what a search among `ROWS` embeddings takes.
    """

    title: str
    rates: dict[str, tuple[float, float, float]]
    find_seconds: float

    def tables(self) -> str:
        """A Markdown table, and a sentence."""
        header = ["model", "model alone, images/s", "files to rows, images/s", "ratio"]
        rows = [
            [name, f"{own:.2f}", f"{whole:.2f}", f"{ratio:.2f}"] for name, (own, whole, ratio) in self.rates.items()
        ]
        search = f"The {TOP} nearest of {ROWS:,} embeddings of width {WIDTH}: {self.find_seconds:.2f} s."
        return f"{self.title}\n\n{markdown(header, rows)}\n\n{search}"


def measure_bulk(models: Sequence[str], device: str, dtype: str, rounds: int) -> BulkReport:
    """Runs over generated images in turns with forward passes of the same batches, and searches.

    Args:
        models, device, dtype: as on the command line.
        rounds: how often each is timed; figures are medians, ratios those of one round.

    Raises:
        OptionError, UnsupportedModelError: an option that cannot be used.
    """
    where, torch_dtype = use(device, dtype)
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_images(folder / "images")
        for model in models:
            localizer = Localizer(build(model, where, torch_dtype).model, keep=False)
            rates[model] = _rates(localizer, folder, rounds)
        seconds = _find_seconds(folder / "embeddings.arrow", rounds)
    title = (
        f"LeGrad with one prompt, {BATCH * BATCHES} JPEGs of {SIZE[0]} x {SIZE[1]} pixels in batches of {BATCH}, two "
        f"threads that decode; {torch.get_num_threads()} threads; medians of {rounds} rounds"
    )
    return BulkReport(title, rates, seconds)


def _write_images(folder: Path) -> None:
    folder.mkdir()
    scenes = [load_image(scene.image).resize(SIZE, Image.Resampling.BICUBIC) for scene in samples()]
    for number in range(BATCH * BATCHES):
        scenes[number % len(scenes)].save(folder / f"{number:04d}.jpg", quality=90)


def _rates(localizer: Localizer, folder: Path, rounds: int) -> tuple[float, float, float]:
    model = localizer.model
    direction = torch.randn(model.vision.embed_dim, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(direction, "random", "embedding")]
    image = load_image(next((folder / "images").iterdir()))
    pixels = torch.stack([model.preprocess.whole(image)] * BATCH)

    def alone() -> None:
        prepared = localizer.settings.prepare(pixels, keep=False)
        explain(prepared, prompts[0].direction[None].to(model.dtype), normalize=False)

    alone()  # warms up
    own, whole = [], []
    for number in tqdm(range(rounds), desc=model.name, leave=False, disable=None):
        start = time.perf_counter()
        for _ in range(BATCHES):
            alone()
        own.append(time.perf_counter() - start)
        out = folder / f"run_{model.name.replace('/', '_')}_{number}"
        start = time.perf_counter()
        localize_all(localizer, folder / "images", out, prompts=prompts, batch_size=BATCH)
        whole.append(time.perf_counter() - start)
    images = BATCH * BATCHES
    ratio = statistics.median(one / other for one, other in zip(own, whole, strict=True))
    return images / statistics.median(own), images / statistics.median(whole), ratio


def _find_seconds(path: Path, rounds: int) -> float:
    generator = np.random.default_rng(0)
    schema = pa.schema([("row", pa.int64()), ("embedding", pa.list_(pa.float16(), WIDTH))])
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, ROWS, 50_000):
            embeddings = generator.standard_normal((50_000, WIDTH), np.float32).astype(np.float16)
            values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel(), pa.float16()), WIDTH)
            writer.write_batch(pa.record_batch([pa.array(np.arange(start, start + 50_000)), values], schema=schema))
    query = torch.from_numpy(generator.standard_normal(WIDTH, np.float32))
    nearest(path, query, TOP)  # warms the page cache
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        nearest(path, query, TOP)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
