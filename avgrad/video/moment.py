"""Moment: the result for one frame of a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from avgrad.localization import Localization

OWN_SOUND = "own sound"  # label of the prompt that is the video's own sound


@dataclass(frozen=True, eq=False, repr=False)
class Moment(Localization):
    """Where each of P prompts is in one frame of a video.

    Where the video's own sound is a prompt, it is the first one. At a silent moment it is not explained: its maps and
    its embedding are zero, and its score is NaN.

    Attributes:
        time: of the frame, in seconds from the beginning of the video.
        silent: whether the video's own sound is a prompt and is silent around the frame.
    """

    time: float = 0.0
    silent: bool = False
    kept: ClassVar[tuple[str, ...]] = (*Localization.kept, "time", "silent")

    def explains(self, index: int) -> bool:
        """Whether prompt `index` was explained: not so the video's own sound where it is silent."""
        return index > 0 or not self.silent

    def __repr__(self) -> str:
        silent = ", silent" if self.silent else ""
        return f"Moment({self.time:.3f} s{silent}, {super().__repr__()})"

    def to_dict(self) -> dict[str, Any]:
        """As `Localization.to_dict`; score, peak and presence are None where the own sound is silent."""
        document = super().to_dict()
        if self.silent:
            document["prompts"][0].update(score=None, peak=None, presence=None)
        return {"time": round(self.time, 6), "silent": self.silent, **document}
