from __future__ import annotations

import pytest
import torch

from avgrad import Prompt


def _prompt(label: str, *numbers: float, modality: str = "audio") -> Prompt:
    return Prompt(torch.tensor(numbers, dtype=torch.float32), label, modality)


def test_prompts_combine_as_vectors() -> None:
    dog, cat, word = _prompt("dog", 1, 0, 0), _prompt("cat", 0, 1, 0), _prompt("a word", 0, 0, 1, modality="text")
    assert torch.equal((dog + cat).embedding, torch.tensor([1.0, 1, 0]))
    assert torch.equal((dog - 0.5 * cat).embedding, torch.tensor([1.0, -0.5, 0]))
    assert torch.equal((2 * (dog + word)).embedding, torch.tensor([2.0, 0, 2]))
    assert (dog + cat).modality == "audio"
    assert (dog + word).modality == "mixed"
    assert (dog - 0.5 * cat).label == "dog - 0.5 cat"
    assert (2 * (dog + word)).label == "2 (dog + a word)"
    torch.testing.assert_close((dog + cat).direction.norm(), torch.tensor(1.0))


def test_prompts_combine_with_prompts_only() -> None:
    with pytest.raises(TypeError):
        _prompt("dog", 1.0) + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        _prompt("dog", 1.0) * "loud"  # type: ignore[operator]
