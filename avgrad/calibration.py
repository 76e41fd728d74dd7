"""Fitting a calibration to images and sounds of known classes, and how reliable it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avgrad.encoders.text import check_templates, encode_labels
from avgrad.errors import InputError, MediaError
from avgrad.files import write_atomic
from avgrad.media import load_image, open_audio
from avgrad.models.model import Calibration, Model
from avgrad.presence import fit_calibration

BINS = 15  # of equal width, as in Guo et al., ICML 2017
MIN_FILES = 2  # of a class: one to fit to, one to measure on


@dataclass(frozen=True)
class Report:
    """How well scores of one modality tell presence, on pairs that were not fitted to.

    Attributes:
        calibration: fitted to the other pairs.
        pairs: number of pairs that it is measured on.
        roc_auc: of the scores, in [0, 1].
        error: expected calibration error, in [0, 1].
        curve: mean probability, share of present pairs and number of pairs of each bin, `[3, bins]`.
    """

    calibration: Calibration
    pairs: int
    roc_auc: float
    error: float
    curve: Tensor


def calibrate_model(model: Model, images: Path, sounds: Path | None = None, template: str = "{}") -> dict[str, Report]:
    """Calibrations of "text" and, with sounds, "sound".

    Every image is paired with the name of every class, and with every sound; the object is present where the classes
    are the same. Files at even places of a class (in the order of their names) are fitted to, the others are measured.

    Args:
        model: as `avgrad.load` gives it.
        images: a folder with a folder of images for each class.
        sounds: the same with sounds, of some of these classes.
        template: with `{}` for the name of the class.

    Raises:
        InputError: a folder is missing, has fewer than two classes, or one of fewer than two files that can be read.
    """
    check_templates(template)

    def pixels(path: Path) -> Tensor:
        return model.encode_image(model.preprocess.whole(load_image(path))[None])[0].cpu()

    def sound(path: Path) -> Tensor:
        with open_audio(path) as opened:
            embedding: Tensor = model.encode_sound(opened)  # type: ignore[attr-defined]
        return embedding.cpu()

    names, shown, own = _encoded("--images", images, pixels)
    texts = encode_labels(model, names, template).cpu()
    found = {"text": _report([(own[half], texts, shown[half][:, None] == torch.arange(len(names))) for half in (0, 1)])}
    if sounds is not None:
        heard_names, heard, clips = _encoded("--sounds", sounds, sound)
        unknown = [name for name in heard_names if name not in names]
        if unknown:
            raise InputError(f"--sounds {sounds} has the class {unknown[0]!r}, of which there are no images")
        places = torch.tensor([names.index(name) for name in heard_names])
        found["sound"] = _report(
            [(own[half], clips[half], shown[half][:, None] == places[heard[half]]) for half in (0, 1)]
        )
    return found


def _encoded(
    argument: str, root: Path, encode: Callable[[Path], Tensor]
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """The names of the classes; of both halves the classes `[n]` and the embeddings `[n, D]` of the files."""
    from tqdm import tqdm

    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        files = [sorted(p for p in own.iterdir() if p.is_file() and not p.name.startswith(".")) for own in folders]
    except OSError as error:
        raise InputError(f"{argument} {root} cannot be read ({error.strerror or error})") from None
    if len(folders) < 2:
        raise InputError(
            f"{argument} {root} has {len(folders)} folders; one for each of at least two classes is expected"
        )
    classes: list[list[int]] = [[], []]
    embeddings: list[list[Tensor]] = [[], []]
    with tqdm(total=sum(map(len, files)), desc=root.name, unit="file", leave=False, disable=None) as bar:
        for index, (folder, paths) in enumerate(zip(folders, files, strict=True)):
            count, problem = 0, ""
            for path in paths:
                bar.update()
                try:
                    embedding = encode(path)
                except MediaError as error:
                    problem = f" ({error})"
                    continue
                classes[count % 2].append(index)
                embeddings[count % 2].append(embedding)
                count += 1
            if count < MIN_FILES:
                raise InputError(
                    f"{folder} has {count} files that can be read; at least {MIN_FILES} are expected{problem}"
                )
    halves = [torch.tensor(half) for half in classes], [torch.stack(half) for half in embeddings]
    return [folder.name for folder in folders], *halves


def _report(halves: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Report:
    """Fitted to the first half's images, prompts and presence, measured on the second's."""
    (images, prompts, present), (other_images, other_prompts, other_present) = halves
    calibration = fit_calibration(images @ prompts.T, present)
    scores, outcome = (other_images @ other_prompts.T).flatten(), other_present.flatten()
    probabilities = calibration.probabilities(scores)
    curve = reliability(probabilities, outcome)
    return Report(calibration, len(scores), roc_auc(scores, outcome), calibration_error(curve), curve)


# ------------------------------------------------------------------ measures


def roc_auc(scores: Tensor, present: Tensor) -> float:
    """The probability that a present pair scores higher than an absent one, ties counted half; NaN without both."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(scores.double().numpy()))
    positives = int(present.sum())
    negatives = len(present) - positives
    if not positives or not negatives:
        return float("nan")
    return float((ranks[present.bool()].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def reliability(probabilities: Tensor, present: Tensor, bins: int = BINS) -> Tensor:
    """Mean probability, share of present pairs and number of pairs in bins of equal width, float64 `[3, bins]`.

    The first two are 0 for an empty bin.
    """
    places = (probabilities.double() * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(places, minlength=bins).double()
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, places, v.double()) for v in (probabilities, present)]
    return torch.stack([*(own / counts.clamp_min(1) for own in sums), counts])


def calibration_error(curve: Tensor) -> float:
    """The expected calibration error (Guo et al., ICML 2017) of a `reliability` curve."""
    mean, share, counts = curve
    return float(((mean - share).abs() * counts).sum() / counts.sum())


def reliability_diagram(reports: Mapping[str, Report], path: Path) -> Path:
    """A PNG of how often what was given a probability was present."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(xlabel="probability", ylabel="share present", xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for modality, report in reports.items():
        mean, share, counts = report.curve.numpy()
        shown = counts > 0
        axes.plot(mean[shown], share[shown], marker="o", label=f"{modality}: error {report.error:.3f}")
    axes.legend()
    return write_atomic(path, partial(figure.savefig, format="png", dpi=120))
