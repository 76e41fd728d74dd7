"""Presence: how well probabilities tell whether what a prompt means is in a synthetic scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from avgrad.calibration import calibration_error, reliability, roc_auc
from avgrad.models.model import Calibration
from avgrad.presence import Presence as Estimator
from avgrad.presence import exceptional
from avgrad.scenes import CLASSES
from eval.encoder import Encoder
from eval.store import Measures
from eval.task import Array, Case, DataError, Example, Resampler, Row, task
from eval.tasks.scenes import NUM_SCENES, PROMPTS, Scenes

PROBABILITIES = ("calibration", "reference")


@task("presence")
class Presence(Scenes):
    """The scenes and prompts of `scenes`; each prompt is asked of all images of 500 scenes at a time.

    "calibration" is the model's own, or the one that `avgrad calibrate` fitted; "reference" compares with the built-in
    names, see `avgrad.presence`. The curve of the report is the share of present pairs by probability.
    """

    measures = "ROC-AUC and expected calibration error of the presence of prompts in synthetic scenes"
    columns: ClassVar[Mapping[str, str]] = {"roc_auc": "ROC-AUC", "calibration_error": "Calibration error"}
    curve_axes: ClassVar[tuple[str, str]] = ("probability", "share present")

    def __init__(
        self,
        root: str | Path | None = None,
        limit: int | None = None,
        seed: int = 1,
        prompts: str = "sound+speech+text",
    ) -> None:
        super().__init__(root, limit, seed, prompts)
        self.modalities = ("audio", "text")  # names are texts
        self._estimators: tuple[Estimator, Estimator] | None = None

    def probe(self, case: Case, maps: Mapping[str, Array], embeddings: Tensor, encoder: Encoder) -> Mapping[str, Array]:
        """Embeddings as in `scenes`, and what makes probabilities of them."""
        kept = dict(super().probe(case, maps, embeddings, encoder))
        if self._estimators is None:
            self._estimators = Estimator(encoder.model), Estimator(encoder.model, "reference")
        calibrated, reference = self._estimators
        found = [calibrated.calibration(PROMPTS[kind]) for kind in self.kinds]
        kept["calibration"] = np.array([(np.nan, np.nan) if own is None else tuple(own) for own in found])
        kept["labels"] = reference.label_scores(torch.from_numpy(kept["image"])[None])[0].numpy()
        weights = [reference.name_weights(torch.from_numpy(own)).numpy() for own in kept["prompts"]]
        kept["names"] = np.stack(weights)
        return kept

    def measure(self, case: Case, maps: Mapping[str, Array]) -> Mapping[str, Array]:
        """The classes of the objects."""
        return {"classes": super().measure(case, {})["classes"]}

    @classmethod
    def summarize(cls, measures: Measures) -> list[Row]:
        """A row for each kind of prompt and each way to a probability; whatever the method."""
        rows = []
        for place, kind in enumerate(cls._kinds(measures)):
            for name in PROBABILITIES:
                pairs = list(cls._pairs(measures, name, place, kind))
                probabilities, present = (torch.cat(parts) for parts in zip(*pairs, strict=True))
                if probabilities.isnan().any():
                    continue
                curve = reliability(probabilities, present)
                figures = {
                    "roc_auc": float(np.mean([roc_auc(*own) for own in pairs])),
                    "calibration_error": calibration_error(curve),
                }
                points = curve[:2, curve[2] > 0].numpy()
                rows.append(Row("presence", {"prompt": kind, "by": name}, figures, curve=points))
        if not rows:
            raise DataError("presence is unknown for all prompts; a model with a text tower is expected")
        return rows

    @classmethod
    def _pairs(cls, measures: Measures, name: str, place: int, kind: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Probabilities and presence of all images and prompts of each block of scenes, `[n]` each."""
        classes = measures.take("classes")
        fields = ("image", "prompts", "calibration", "labels", "names")
        for block, parts in enumerate(zip(*(measures.stream(field, NUM_SCENES) for field in fields), strict=True)):
            images, prompts, calibration, labels, names = map(torch.from_numpy, parts)
            own = classes[block * NUM_SCENES :][: len(images)]
            drawn = torch.from_numpy(own >= 0)
            if name == "calibration":
                own_calibration = Calibration(*calibration[0, place].tolist())
                found = own_calibration.probabilities(images @ prompts[:, place][drawn].T)
            elif kind == "text":
                found = exceptional(images @ prompts[:, place][drawn].T, labels)
            else:
                found = exceptional(labels, labels) @ names[:, place][drawn].T
            shown = np.stack([(own == number).any(1) for number in range(len(CLASSES))], axis=1)
            yield found.flatten(), torch.from_numpy(shown[:, own[own >= 0]]).flatten()

    @classmethod
    def resampler(cls, measures: Measures, row: Row) -> Resampler:
        """There is none: pairs share images and prompts."""
        raise DataError("presence has no bootstrap: its pairs of images and prompts are not independent")

    def examples(self, measures: Measures, row: Row) -> Iterator[Example]:
        """None: there are no heatmaps."""
        yield from ()
