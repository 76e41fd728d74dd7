"""The server behind `avgrad app`: streamlit with the page's settings, ready before the first visitor comes."""

from __future__ import annotations

import logging
from pathlib import Path

PAGE = Path(__file__).with_name("page.py")

MAX_UPLOAD_MB = 25
SETTINGS: dict[str, str | int | bool] = {
    "server.maxUploadSize": MAX_UPLOAD_MB,
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": False,
    # what went wrong inside is for the server's log, and not for visitors
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
    "theme.baseRadius": "0.6rem",
    "theme.light.primaryColor": "#0b6bcb",
    "theme.dark.primaryColor": "#4da3ff",
}
"""The settings of `streamlit run`; `.streamlit/config.toml` says the same to who starts streamlit by hand."""


def arguments(port: int, address: str, show: bool) -> list[str]:
    """The command line of streamlit that serves the page.

    Args:
        port: where it listens.
        address: whom it listens to: "localhost" is this machine alone, "0.0.0.0" the network.
        show: open the page in a browser.
    """
    settings = {
        **SETTINGS,
        "server.port": port,
        "server.address": address,
        "server.headless": not show,
        "server.showEmailPrompt": False,
    }
    flags = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in settings.items()]
    return ["run", str(PAGE), *flags]


def serve(port: int, address: str, show: bool) -> None:
    """Serves the page until it is stopped; see `arguments`."""
    from streamlit.web import cli

    logging.disable(logging.NOTSET)
    _warm_up()
    cli.main(arguments(port, address, show), prog_name="streamlit")


def _warm_up() -> None:
    """Does once what takes long the first time, so that no visitor waits for it."""
    import avgrad.app.page  # noqa: F401
    from avgrad.app.image import sample_image
    from avgrad.app.model_pool import BUNDLED, the_model_pool
    from avgrad.app.overlays import Display, jpeg, overlay
    from avgrad.app.question import Question
    from avgrad.app.session import Session
    from avgrad.scenes.samples import samples

    session, obj = Session(the_model_pool()), samples()[0].objects[0]
    session.model(BUNDLED)
    sound = Question(obj.sound.name, "audio", obj.sound.read_bytes())
    session.sound(sound)
    answer, _ = session.look(sample_image(0), [sound, Question(obj.text, "text", obj.text.encode())])
    assert answer is not None
    jpeg(overlay(answer.result, 0, Display()))
