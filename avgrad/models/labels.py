"""The classes of a classifier by name or index."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from avgrad.errors import PromptError


class Labels:
    """Finds the class that a label means.

    Args:
        model: the model's name, for errors.
        count: how many classes there are.
        names: the classes' names in order, synonyms set apart by commas; None where the classes have no names.
    """

    def __init__(self, model: str, count: int, names: Sequence[str] | None) -> None:
        self.model, self.count, self.names = model, count, None if names is None else list(names)
        self._indices: dict[str, list[int]] = {}
        for index, description in enumerate(self.names or []):
            for name in dict.fromkeys([description, *description.split(",")]):
                self._indices.setdefault(name.strip().casefold(), []).append(index)

    def index(self, label: str) -> int:
        """The index of a class.

        Args:
            label: an index in digits, a class's whole name ("tabby, tabby cat") or one of its synonyms ("tabby").

        Raises:
            PromptError: there is no such class, or there are several.
        """
        wanted = label.strip().casefold()
        if wanted.isdecimal():
            index = int(wanted)
            if index >= self.count:
                raise PromptError(f"{self.model} has no class {index}: its classes are 0 to {self.count - 1}")
            return index
        if self.names is None:
            raise PromptError(f"the classes of {self.model} have no names; expected an index from 0, not {label!r}")
        found = self._indices.get(wanted, [])
        if len(found) > 1:
            indices = " and ".join(map(str, found))
            raise PromptError(f"{label!r} names classes {indices} of {self.model}; give an index")
        if not found:
            close = difflib.get_close_matches(wanted, self._indices, n=3)
            hint = f"close are {', '.join(close)}" if close else "expected the name of a class or its index"
            raise PromptError(f"{self.model} has no class {label!r}; {hint}")
        return found[0]
