from __future__ import annotations

import pytest
import torch

from avgrad import PromptError
from avgrad.encoders.text import encode_labels, tokenize
from avgrad.models.imagebind import ImageBind
from avgrad.models.towers import ImageBindConfig


@pytest.fixture(scope="module")
def model() -> ImageBind:
    config = ImageBindConfig(text_embed_dim=32, text_num_blocks=2, text_num_heads=2, out_embed_dim=16)
    return ImageBind(config, ["text"]).initialize(torch.Generator().manual_seed(0)).eval()


def test_templates_are_averaged(model: ImageBind) -> None:
    templates = ("{}", "a photo of a {}", "the sound of {}, {}")
    averaged = encode_labels(model, [" dog ", "bell"], templates)
    for row, label in zip(averaged, ("dog", "bell"), strict=True):
        each = model.encode_text([label, f"a photo of a {label}", f"the sound of {label}, {label}"])
        torch.testing.assert_close(row, torch.nn.functional.normalize(each.mean(0), dim=-1))
    torch.testing.assert_close(averaged.norm(dim=-1), torch.ones(2))


def test_one_template_is_a_text(model: ImageBind) -> None:
    assert torch.equal(
        encode_labels(model, ["dog"], "a photo of a {}"), encode_labels(model, ["dog"], ["a photo of a {}"])
    )


def test_many_texts_are_encoded_in_parts(model: ImageBind, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, templates = [f"class {number}" for number in range(7)], ("{}", "a photo of a {}")
    whole = encode_labels(model, labels, templates)
    monkeypatch.setattr("avgrad.encoders.text.BATCH", 3)
    torch.testing.assert_close(encode_labels(model, labels, templates), whole)


def test_long_texts_are_cut_and_keep_their_end() -> None:
    tokens = tokenize(["dog " * 200, "dog"])
    assert tokens.shape == (2, 77)
    assert (tokens == 49407).sum(1).tolist() == [1, 1]


def test_a_trimmed_vocabulary_keeps_its_words() -> None:
    words = sorted({0, 49406, 49407, *tokenize(["a dog"])[0].tolist()})
    config = ImageBindConfig(text_embed_dim=32, text_num_blocks=1, text_num_heads=2, text_vocab_size=len(words))
    trimmed = ImageBind(config, ["text"], vocabulary=words)
    tokens = trimmed.tokens(["a dog", "a zebra dog"])
    assert [words[i] for i in tokens[0, :4]] == tokenize(["a dog"])[0, :4].tolist()
    assert tokens[1, 2] == 0  # an unknown word
    assert tokens.argmax(-1).tolist() == [3, 4]  # the end-of-text token still has the highest id


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        (["dog", " "], ("{}",), "is empty"),
        ([3], ("{}",), "is of type int"),
        (["dog"], ("a photo",), "has no {}"),
        (["dog"], "a photo", "has no {}"),
        (["dog"], (), "templates are empty"),
        (["dog"], (3,), "has no {}"),
        (["a dog \udcff"], "{}", "is not valid Unicode"),
    ],
)
def test_wrong_texts_are_said(
    model: ImageBind, labels: list[str], templates: str | tuple[str, ...], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        encode_labels(model, labels, templates)
