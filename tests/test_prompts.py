from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from avgrad import Prompt, PromptError


def _prompt(label: str, *numbers: float, modality: str = "audio") -> Prompt:
    return Prompt(torch.tensor(numbers, dtype=torch.float32), label, modality)


def test_prompts_combine_as_vectors() -> None:
    dog, cat, word = _prompt("dog", 1, 0, 0), _prompt("cat", 0, 1, 0), _prompt("a word", 0, 0, 1, modality="text")
    assert torch.equal((dog + cat).embedding, torch.tensor([1.0, 1, 0]))
    assert torch.equal((dog - 0.5 * cat).embedding, torch.tensor([1.0, -0.5, 0]))
    assert torch.equal((2 * (dog + word)).embedding, torch.tensor([2.0, 0, 2]))
    assert torch.equal((-(dog - cat) / 4).embedding, torch.tensor([-0.25, 0.25, 0]))
    assert torch.equal(sum([dog, cat, word]).embedding, torch.ones(3))  # type: ignore[union-attr]
    assert (dog + cat).modality == "audio"
    assert (dog + word).modality == "mixed"
    assert (dog - 0.5 * cat).label == "dog - 0.5 cat"
    assert (2 * (dog + word)).label == "2 (dog + a word)"
    assert (-(dog - cat)).label == "-(dog - cat)"
    assert (sum([dog, cat]) / 2).label == "(dog + cat) / 2"
    torch.testing.assert_close((dog + cat).direction.norm(), torch.tensor(1.0))


@pytest.mark.parametrize("two", [2, 2.0, np.int64(2), np.float32(2), np.float64(2)])
def test_weights_are_numbers_of_python_or_numpy(two: Any) -> None:
    dog = _prompt("dog", 1, 3)
    for product in (two * dog, dog * two, dog / (1 / two)):
        assert isinstance(product, Prompt)
        assert torch.equal(product.embedding, torch.tensor([2.0, 6.0]))


def test_prompts_combine_with_prompts_only() -> None:
    for wrong in (1, "loud", None, torch.ones(1)):
        with pytest.raises(TypeError):
            _prompt("dog", 1.0) + wrong  # type: ignore[operator]
    with pytest.raises(TypeError):
        _prompt("dog", 1.0) * "loud"  # type: ignore[operator]
    with pytest.raises(TypeError):
        1 - _prompt("dog", 1.0)  # type: ignore[operator]


def test_combinations_without_a_meaning() -> None:
    with pytest.raises(PromptError, match="widths 1 and 2"):
        _prompt("dog", 1.0) + _prompt("cat", 1.0, 0.0)
    with pytest.raises(PromptError, match="weight nan"):
        float("nan") * _prompt("dog", 1.0)
    with pytest.raises(PromptError, match="divided by 0"):
        _prompt("dog", 1.0) / 0


@pytest.mark.parametrize("embedding", [[1.0, 2.0], np.ones(3), torch.ones(1, 3), torch.arange(3), None])
def test_embeddings_that_are_none(embedding: Any) -> None:
    with pytest.raises(PromptError, match=r"a float tensor \[D\] is expected"):
        Prompt(embedding, "wrong", "embedding")
