"""One forward pass for several methods gives what each method gives by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from eval_small import small_model

from avgrad.engine import legrad
from avgrad.engine.attribute import attribute
from avgrad.engine.methods import list_methods
from eval.methods import attribute_all


@pytest.mark.parametrize("layers", [None, -2, 1, (0, 1)])
@pytest.mark.parametrize(
    "methods",
    [
        ("legrad", "cosine", "raw_attention"),
        ("raw_attention", "legrad"),
        ("cosine", "raw_attention"),
        ("raw_attention", "cosine"),
        ("cosine",),
        ("legrad_autograd", "cosine", "legrad"),
    ],
)
def test_the_same_to_the_last_bit(methods: tuple[str, ...], layers: int | tuple[int, ...] | None) -> None:
    view = small_model().vision
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 56, 84, generator=generator)
    prompts = torch.randn(2, 2, 24, generator=generator)
    maps = attribute_all(view, pixels, prompts, methods, layers)
    assert tuple(maps) == methods
    for name in methods:
        alone = attribute(view, pixels, prompts, name, layers, per_layer=True).sum(2)
        assert torch.equal(maps[name], alone), name


def test_more_images_than_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    view = small_model().vision
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(5, 3, 56, 84, generator=generator)
    prompts = torch.randn(5, 2, 24, generator=generator)
    whole = attribute_all(view, pixels, prompts, ("legrad", "cosine", "raw_attention"))
    monkeypatch.setitem(legrad.CHUNK_BYTES, "cpu", 2 * legrad.CHUNK_BYTES["cpu"] // legrad.images_at_once(view, pixels))
    assert legrad.images_at_once(view, pixels) == 2
    parts = attribute_all(view, pixels, prompts, ("legrad", "cosine", "raw_attention"))
    for name, maps in whole.items():
        torch.testing.assert_close(parts[name], maps, rtol=0, atol=1e-6)


def test_there_is_one_forward_pass() -> None:
    view = small_model().vision
    embedded = []

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        embedded.append(pixels)
        return view.embed(pixels)

    pixels, prompts = torch.randn(1, 3, 28, 28), torch.randn(1, 1, 24)
    attribute_all(replace(view, embed=embed), pixels, prompts, ("raw_attention", "legrad", "cosine"))
    assert len(embedded) == 1


def test_every_method_of_the_library_can_be_evaluated() -> None:
    view = small_model().vision
    maps = attribute_all(view, torch.randn(1, 3, 28, 28), torch.randn(1, 1, 24), list_methods())
    assert all(values.shape == (1, 1, 2, 2) for values in maps.values())
