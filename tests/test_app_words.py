"""What the page says of models that do not understand words, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from avgrad.app import prompts, sidebar
from avgrad.models.imagebind import ImageBind
from avgrad.models.registry import load


def page(understands: bool, installed: str | None) -> None:
    """What streamlit runs: the prompts' part of the page."""
    from types import SimpleNamespace

    from avgrad.app import prompts
    from avgrad.app.session import sample_image

    prompts.installed_pe_av = lambda: installed
    model = SimpleNamespace(name="imagebind_huge", modalities=("audio", "text"), understands_words=understands)
    prompts.choose_questions(sample_image(0), model)


def run(monkeypatch: pytest.MonkeyPatch, understands: bool, installed: str | None = None) -> AppTest:
    monkeypatch.setattr(prompts, "installed_pe_av", prompts.installed_pe_av)  # restored afterwards
    test = AppTest.from_function(page, kwargs={"understands": understands, "installed": installed}).run(timeout=60)
    assert not test.exception
    return test


@pytest.mark.parametrize(("installed", "choice"), [(None, "mini"), ("pe-av-base", sidebar.PE_AV)])
def test_another_model_is_offered(monkeypatch: pytest.MonkeyPatch, installed: str | None, choice: str) -> None:
    test = run(monkeypatch, understands=False, installed=installed)
    words = next(info.value for info in test.info if "somebody speaks" in info.value)
    assert (installed or "mini") in words and ("drawings" in words) == (installed is None)
    test.button(key="use_words").click().run(timeout=60)
    assert test.session_state["model"] == choice


def test_models_that_understand_words_need_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    test = run(monkeypatch, understands=True)
    assert not any("somebody speaks" in info.value for info in test.info)


def test_which_models_understand_words() -> None:
    mini: Any = load("mini", towers=("audio",))
    assert mini.understands_words
    assert not ImageBind(towers=("audio",), name="imagebind_huge").understands_words


def test_installed_pe_av(monkeypatch: pytest.MonkeyPatch) -> None:
    here: Callable[[str], str | None] = {"pe-av-base-16-frame": "folder"}.get
    monkeypatch.setattr(sidebar, "cached_folder", here)
    assert sidebar.installed_pe_av() == "pe-av-base-16-frame"
    monkeypatch.setattr(sidebar, "cached_folder", lambda name: None)
    assert sidebar.installed_pe_av() is None
