"""Models by name. Each family registers itself with `@family`, in a file of this folder."""

from __future__ import annotations

import os
import pkgutil
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TypeVar

import torch

from avgrad.errors import CheckpointError, UnsupportedModelError, out_of_memory
from avgrad.models.devices import resolve_device, resolve_dtype
from avgrad.models.model import Model

TOWERS = ("vision", "audio", "text")
OWN = "imagebind"  # the module of the bundled model
CACHED = 2  # models kept by `load_cached`
Source = str | os.PathLike[str]
Class = TypeVar("Class", bound="type[Family]")


@dataclass(frozen=True)
class Entry:
    """A line of `avgrad models`: a model's name, the prompts that it takes, and whether its weights are here."""

    name: str
    modalities: tuple[str, ...]
    weights: str


class Family(ABC):
    """A family of models. `@family` registers a subclass under the names that it takes."""

    @abstractmethod
    def load(
        self, name: str, *, checkpoint: Source | None, device: torch.device, dtype: torch.dtype, towers: Sequence[str]
    ) -> Model:
        """A model of the family, ready to use.

        Args:
            name: what is behind the family's prefix; the whole name where it has none.
            checkpoint: a file to take the weights from; None for the published ones.
            device, dtype: where to put the model, and the dtype of its weights.
            towers: which towers to load, for families whose models come in parts.

        Raises:
            UnsupportedModelError: there is no such model, or it cannot be explained.
            CheckpointError: its weights are not here or cannot be read.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The names of its models with published weights, as `avgrad.load` takes them."""

    def entries(self) -> list[Entry]:
        """The family's lines of `avgrad models`."""
        return [Entry(name, ("text",), "") for name in self.names()]

    def refused(self) -> list[tuple[str, str]]:
        """Names of models that cannot be explained, each with the reason."""
        return []


FAMILIES: dict[str, Family] = {}  # by prefix ("timm:"), or by a whole name ("mini")
FORMS: list[str] = []  # of names, for messages
MISSING: dict[str, str] = {}  # modules of families that an optional package is missing for: its name


def family(*forms: str) -> Callable[[Class], Class]:
    """Registers a class as a family of models.

    Args:
        *forms: whole names ("mini"), or a prefix with a colon and what goes behind it ("timm:NAME").
    """

    def register(cls: Class) -> Class:
        instance = cls()
        for form in forms:
            prefix, colon, _ = form.partition(":")
            FAMILIES[prefix + colon] = instance
            if form not in FORMS:
                FORMS.append(form)
        return cls

    return register


def _modules(first: str) -> list[str]:
    """Names of the modules of this folder: those that begin like `first` first, then our own."""
    import avgrad.models

    first = first.replace("-", "_")
    names = [module.name for module in pkgutil.iter_modules(avgrad.models.__path__) if not module.ispkg]
    return sorted(
        names, key=lambda name: (not name.startswith(first) and not first.startswith(name), name != OWN, name)
    )


def _import(module: str) -> None:
    if module in MISSING:
        return
    try:
        import_module(f"avgrad.models.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "avgrad":
            raise
        MISSING[module] = error.name  # an optional package that only this family needs


def _find(key: str) -> Family | None:
    """The family registered under a prefix or a name; files are imported until one registers it."""
    for module in _modules(key.removesuffix(":")):
        if key in FAMILIES:
            break
        _import(module)
    return FAMILIES.get(key)


def families() -> list[Family]:
    """All families: our own first, the others by name of their file."""
    for module in _modules(OWN):
        _import(module)
    return list(dict.fromkeys(FAMILIES.values()))


def load(
    name: str,
    *,
    checkpoint: Source | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    towers: Sequence[str] = TOWERS,
) -> Model:
    """Loads a model.

    Args:
        name: one of `avgrad.list_models()`: "mini" (bundled, works offline), "imagebind_huge",
            "pe-av-base", "open_clip:ViT-B-16/laion2b_s34b_b88k", "timm:vit_base_patch16_224" (its prompts are its
            classes), ...
        checkpoint: a file to take the weights from instead of the published ones; for PE-AV also a folder.
        device: where to put it: "cpu", "cuda", "cuda:1", "mps", ...
        dtype: of its weights: "float32", "bfloat16", "float16", "float64" or the `torch.dtype`; "auto" for bfloat16
            where the device computes it natively and a short measurement, which is kept, finds it faster, else float32.
        towers: which of the towers of an ImageBind or PE-AV model to load; the others take neither time nor memory.

    Raises:
        UnsupportedModelError: there is no such model, or it cannot be explained.
        CheckpointError: its weights are not here or cannot be read.
        InputError: the device is not available, or the dtype is not accepted.
    """
    prefix, colon, rest = name.partition(":") if isinstance(name, str) else (repr(name), "", "")
    found = _find(prefix + colon)
    if found is None or (colon and not rest):
        message = f"there is no model {name!r}; there are {', '.join(FORMS)} (`avgrad models` lists them)"
        if MISSING:
            message += f"; some need a package that is not installed: {', '.join(sorted(set(MISSING.values())))}"
        raise UnsupportedModelError(message)
    where = resolve_device(device)
    options = {"device": where, "dtype": resolve_dtype(dtype, where), "towers": towers}
    try:
        return found.load(rest if colon else name, checkpoint=checkpoint, **options)  # type: ignore[arg-type]
    except OSError as error:
        if out_of_memory(error):
            raise
        raise CheckpointError(f"the weights of {name} cannot be read ({error.strerror or error})") from error


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models with published weights that can be explained, as `avgrad.load` takes them.

    Args:
        pattern: with the wildcards `*`, `?` and `[...]`, such as "open_clip:*B-16*" or "timm:vit_*".
    """
    return list(_matching(pattern, lambda group: dict.fromkeys(group.names())))


def entries(pattern: str = "*") -> list[Entry]:
    """The lines of `avgrad models` whose names match."""
    return list(_matching(pattern, lambda group: {entry.name: entry for entry in group.entries()}).values())


def refused(pattern: str = "*") -> list[tuple[str, str]]:
    """Names of models that cannot be explained and match, each with the reason."""
    return list(_matching(pattern, lambda group: dict(group.refused())).items())


T = TypeVar("T")


def _matching(pattern: str, listing: Callable[[Family], Mapping[str, T]]) -> dict[str, T]:
    prefix, colon, _ = pattern.partition(":")
    if colon and not any(wildcard in prefix for wildcard in "*?["):  # no need to ask the other families
        found = _find(prefix + colon)
        groups = [] if found is None else [found]
    else:
        head = re.split(r"[*?[]", pattern, maxsplit=1)[0]
        families()
        fitting = {key: group for key, group in FAMILIES.items() if key.startswith(head) or head.startswith(key)}
        groups = list(dict.fromkeys(fitting.values()))
    return {name: value for group in groups for name, value in listing(group).items() if fnmatchcase(name, pattern)}


def describe_weights(tags: Mapping[str, bool]) -> str:
    """Pretrained tags in words: those whose weights are in the cache, and the others."""
    here = [tag for tag, is_here in tags.items() if is_here]
    there = [tag for tag, is_here in tags.items() if not is_here]
    states = [f"here: {', '.join(here)}"] if here else []
    if there:
        states.append(f"fetched when first used: {', '.join(there)}")
    return "; ".join(states)


# ------------------------------------------------------------------ models that are kept

_cached: OrderedDict[tuple[str, torch.device, torch.dtype], Model] = OrderedDict()
_lock = threading.Lock()


def load_cached(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | str = torch.float32) -> Model:
    """A model that is loaded once and shared by all who ask for it by name: `Localizer("name")`, `avgrad.localize`.

    The two models used last are kept, by name, device and dtype; `clear` lets them go. Threads that ask for the same
    model wait for one loading.

    Args:
        name, device, dtype: as `load` takes them.

    Raises:
        UnsupportedModelError, CheckpointError, InputError: as `load`.
    """
    where = resolve_device(device)
    key = name, where, resolve_dtype(dtype, where)
    with _lock:
        model = _cached.get(key)
        if model is None:
            while len(_cached) >= CACHED:  # before the new one is loaded: large ones may not fit together
                _cached.popitem(last=False)
            model = _cached[key] = load(name, device=where, dtype=key[2])
        _cached.move_to_end(key)
    return model


def clear() -> None:
    """Lets go of the models that `load_cached` keeps."""
    with _lock:
        _cached.clear()
