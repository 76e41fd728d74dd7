"""Models by name: families that register themselves, and models that are kept."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import avgrad
from avgrad import CheckpointError, InputError, Localizer, UnsupportedModelError
from avgrad.errors import out_of_memory
from avgrad.models import half_precision, registry
from avgrad.models.checkpoints import not_loaded
from avgrad.models.devices import resolve_dtype
from avgrad.models.imagebind import ImageBind
from avgrad.models.model import Calibration
from avgrad.models.registry import Family, family, load_cached

ROOT = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    registry.clear()
    yield
    registry.clear()


@pytest.fixture
def loads() -> Iterator[list[str]]:
    """A family `test:NAME` that notes what it loads."""
    noted: list[str] = []

    @family("test:NAME")
    class Test(Family):
        def load(self, name: str, *, towers: Sequence[str], **options: Any) -> Any:
            noted.append(name)
            time.sleep(0.01)
            return object()

        def names(self) -> list[str]:
            return ["test:one", "test:two", "test:[three]"]

        def refused(self) -> list[tuple[str, str]]:
            return [("test:four", "it has windows")]

    yield noted
    del registry.FAMILIES["test:"]
    registry.FORMS.remove("test:NAME")


def test_a_family_is_one_class(loads: list[str]) -> None:
    avgrad.load("test:one")
    assert loads == ["one"]
    assert avgrad.list_models("test:t*") == ["test:two"]
    assert avgrad.list_models("test:*") == ["test:one", "test:two", "test:[three]"]
    assert [entry.name for entry in registry.entries("test:o*")] == ["test:one"]
    assert registry.refused("test:*") == [("test:four", "it has windows")]
    assert avgrad.list_models("none:*") == []


def test_names_are_those_that_load_takes() -> None:
    assert avgrad.list_models("m*") == ["mini"]
    assert "open_clip:ViT-B-16/laion2b_s34b_b88k" in avgrad.list_models("open_clip:*B-16*")
    assert all(name.startswith("open_clip:") and "B-16" in name for name in avgrad.list_models("open_clip:*B-16*"))


@pytest.mark.parametrize("name", ["giant", "timm:", "nobody:x", "", ":", 3])
def test_unknown_names(name: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"there is no model .*mini, imagebind_huge.*timm:NAME"):
        avgrad.load(name)


def test_loading_mini_imports_no_other_library() -> None:
    code = (
        "import sys, avgrad; avgrad.load('mini', towers=['vision']); "
        "print([m for m in ('timm', 'open_clip', 'transformers', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_hurts_only_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        if name.endswith(".timm"):
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        raise AssertionError(f"{name} is imported already")

    monkeypatch.setattr(registry, "FAMILIES", {})
    monkeypatch.setattr(registry, "MISSING", {})
    monkeypatch.setattr(registry, "_modules", lambda first: ["timm"])
    monkeypatch.setattr(registry, "import_module", import_module)
    with pytest.raises(UnsupportedModelError, match="a package that is not installed: timm"):
        avgrad.load("timm:vit_tiny_patch16_224")


def test_models_by_name_are_kept_and_shared(loads: list[str]) -> None:
    first = load_cached("test:one")
    assert load_cached("test:one") is first
    load_cached("test:two")
    assert load_cached("test:one") is first
    load_cached("test:three")  # two goes, which was used longest ago
    assert load_cached("test:one") is first
    load_cached("test:two")
    assert loads == ["one", "two", "three", "two"]
    assert load_cached("test:two", dtype="bfloat16") is not load_cached("test:two")
    registry.clear()
    assert load_cached("test:one") is not first


def test_threads_wait_for_one_loading(loads: list[str]) -> None:
    together = threading.Barrier(8)

    def ask(_: int) -> Any:
        together.wait()
        return load_cached("test:one")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(ask, range(8))))) == 1
    assert loads == ["one"]


def test_localizers_of_a_name_share_the_model() -> None:
    one, other = Localizer("mini"), Localizer("mini", layers=-1)
    assert one.model is other.model
    assert Localizer("mini", dtype="bfloat16").model.dtype == torch.bfloat16
    assert avgrad.load("mini") is not one.model
    with pytest.raises(InputError, match="device and dtype go with a model's name"):
        Localizer(one.model, dtype="float32")


@pytest.mark.parametrize("device", ["toaster", "meta", "privateuseone", "cuda:77", "", 2.5])
def test_devices_that_are_not_here(device: Any) -> None:
    with pytest.raises(InputError, match="is not available here"):
        avgrad.load("mini", device=device)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", torch.float8_e4m3fn, "int8", torch.int64, "", "half", None])
def test_dtypes_that_are_not_accepted(dtype: Any) -> None:
    with pytest.raises(InputError, match="is not accepted; expected 'auto' or one of"):
        avgrad.load("mini", dtype=dtype)


def test_dtypes() -> None:
    assert avgrad.load("mini", dtype="bfloat16").dtype == torch.bfloat16
    assert avgrad.load("mini", dtype=torch.float16).dtype == torch.float16


def test_auto_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, measured = torch.device("cpu"), []

    def measure(gain: float) -> None:
        monkeypatch.setattr(half_precision, "measure", lambda device: measured.append(device) or gain)

    monkeypatch.setenv("AVGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(half_precision, "has_bfloat16", lambda device: False)
    assert resolve_dtype("auto", device) == torch.float32 and not measured
    monkeypatch.setattr(half_precision, "has_bfloat16", lambda device: True)
    measure(1.1)
    assert resolve_dtype("auto", device) == torch.float32
    measure(3.0)
    assert resolve_dtype("auto", device) == torch.float32 and len(measured) == 1  # as it was kept
    path = tmp_path / "cache" / "dtypes.json"
    assert list(json.loads(path.read_text()).values()) == [1.1]
    path.write_text("damaged")
    assert resolve_dtype("auto", device) == torch.bfloat16 and len(measured) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert resolve_dtype("auto", device) == torch.bfloat16 and len(measured) == 3
    assert len(json.loads(path.read_text())) == 2
    monkeypatch.setenv("AVGRAD_CACHE", "/dev/null/cache")  # cannot be written
    assert resolve_dtype("auto", device) == torch.bfloat16 and len(measured) == 4


def test_the_measurement() -> None:
    assert 0 < half_precision.measure(torch.device("cpu")) < 1000
    assert half_precision.has_bfloat16(torch.device("cpu")) in (True, False)


def test_calibration_belongs_to_the_model() -> None:
    model = avgrad.load("mini", towers=["vision"])
    assert model.calibration is not None
    chances = [model.calibration.probability(score) for score in (-1.0, 0.0, 0.2, 0.4, 1.0)]
    assert chances == sorted(chances)
    assert 0 <= chances[0] < 0.5 < chances[-1] <= 1
    assert ImageBind(towers=["vision"]).calibration is None
    assert Calibration(2.0, -1.0).probability(0.5) == 0.5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_missing_weights(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) == expected
    raised = not_loaded("some model", error)
    assert (raised is error) == expected
    assert isinstance(raised, CheckpointError) != expected
