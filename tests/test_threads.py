"""One Localizer shared by threads: each gets the answer for the image that it set."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from avgrad import Localizer, Prompt
from avgrad.models.imagebind import ImageBind
from avgrad.models.towers import ImageBindConfig

THREADS, ROUNDS, WIDTH = 12, 6, 16


@pytest.fixture(scope="module")
def model() -> ImageBind:
    config = ImageBindConfig(
        vision_embed_dim=32, vision_num_blocks=2, vision_num_heads=2, out_embed_dim=WIDTH, image_size=64
    )
    return ImageBind(config, ["vision"]).initialize(torch.Generator().manual_seed(0)).eval()


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter allows, so that a race shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def _image(number: int) -> Image.Image:
    generator = torch.Generator().manual_seed(number)
    # sizes differ, too: a wrong image then also gives a heatmap of the wrong shape
    pixels = torch.randint(0, 256, (64 + number, 80, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("keep", [True, False])
def test_each_thread_gets_the_answer_for_its_own_image(model: ImageBind, keep: bool) -> None:
    prompt = Prompt(torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)), "random", "embedding")
    images = [_image(number) for number in range(THREADS)]
    expected = []
    for image in images:
        alone = Localizer(model, keep=keep)
        alone.set_image(image)
        expected.append(alone.localize(prompts=prompt))
    shared, together = Localizer(model, keep=keep), threading.Barrier(THREADS)

    def work(number: int) -> list[str]:
        wrong = []
        for turn in range(ROUNDS):
            chosen = (number + turn) % THREADS
            together.wait()
            shared.set_image(images[chosen])
            result = shared.localize(prompts=prompt)
            if result.image.size != images[chosen].size:
                wrong.append(f"thread {number} got the image of another one")
            elif not torch.allclose(result.maps, expected[chosen].maps, atol=1e-6):
                wrong.append(f"thread {number} got the maps of another image")
            elif abs(float(result.scores - expected[chosen].scores)) > 1e-6:
                wrong.append(f"thread {number} got the score of another image")
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert [line for lines in pool.map(work, range(THREADS)) for line in lines] == []


def test_a_thread_without_an_image_of_its_own_uses_the_last_one(model: ImageBind) -> None:
    prompt = Prompt(torch.ones(WIDTH), "ones", "embedding")
    localizer = Localizer(model)
    localizer.set_image(_image(0))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(localizer.localize, prompts=prompt).result().image.size == _image(0).size
        pool.submit(localizer.set_image, _image(3)).result()
        assert pool.submit(localizer.localize, prompts=prompt).result().image.size == _image(3).size
    assert localizer.localize(prompts=prompt).image.size == _image(0).size


def test_each_call_has_its_own_seconds(model: ImageBind) -> None:
    prompt = Prompt(torch.ones(WIDTH), "ones", "embedding")
    localizer = Localizer(model)
    localizer.set_image(_image(0))
    first = localizer.localize(prompts=prompt)
    before = dict(first.seconds)
    localizer.set_image(_image(1))
    second = localizer.localize(prompts=prompt)
    assert first.seconds == before
    assert first.seconds is not second.seconds
    assert set(second.seconds) == {"image", "prompts", "heatmaps"}
