"""The views of transformers' models against the library's own modules, in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from huggingface_small import SIDE, SMALL

from avgrad import attribute
from avgrad.models.view import view


@pytest.mark.parametrize("name", SMALL)
def test_embeddings_are_the_librarys_own(name: str) -> None:
    small = SMALL[name]()
    found = view(small.model)
    for size in small.other_sizes:
        pixels = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = torch.nn.functional.normalize(small.own(pixels), dim=-1)
        torch.testing.assert_close(found.encode(pixels), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_closed_form_is_autograd_through_the_library(name: str) -> None:
    small = SMALL[name]()
    found = view(small.model)
    size = small.other_sizes[-1]  # not square
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    prompts = torch.nn.functional.normalize(torch.randn(3, found.embed_dim, dtype=torch.float64), dim=-1)
    for pooling in ("mean", "cls") if small.num_prefix_tokens else ("mean",):
        expected = small.legrad(pixels, prompts, pooling)
        maps = attribute(found, pixels, prompts, per_layer=True, pooling=pooling)
        assert maps.shape == (2, 3, 3, size[0] // SIDE, size[1] // SIDE)
        assert expected.amax() > 0
        assert (maps.flatten(3) - expected).abs().amax() < 1e-10 * expected.amax()
