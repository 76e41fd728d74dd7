"""The server behind `avgrad app`: streamlit with the page's settings, warmed up before the first visitor."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from avgrad.errors import InputError

PAGE = Path(__file__).with_name("page.py")

MAX_UPLOAD_MB = 25
SETTINGS: dict[str, str | int | bool] = {
    "server.maxUploadSize": MAX_UPLOAD_MB,
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": False,
    # tracebacks go to the server's log, not to visitors
    "client.showErrorDetails": "none",
    "client.toolbarMode": "minimal",
    "theme.baseRadius": "0.6rem",
    "theme.light.primaryColor": "#0b6bcb",
    "theme.dark.primaryColor": "#4da3ff",
}
"""The settings of `streamlit run`; `.streamlit/config.toml` has the same for starting streamlit by hand."""


def arguments(port: int, address: str, show: bool) -> list[str]:
    """The command line of streamlit that serves the page.

    Args:
        port: the port to listen on.
        address: the address to listen on: "localhost" for this machine only, "0.0.0.0" for the network.
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
    """Serves the page until it is stopped; see `arguments`.

    Raises:
        InputError: streamlit is not installed.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise InputError("the page needs streamlit: pip install 'avgrad[app]'")
    from streamlit.web import cli

    logging.disable(logging.NOTSET)
    _warm_up()
    cli.main(arguments(port, address, show), prog_name="streamlit")


def _warm_up() -> None:
    """Does what takes long the first time: imports, loading the bundled model, a first answer."""
    import avgrad.app.page  # noqa: F401
    from avgrad.app.heatmaps import Display, jpeg, overlay
    from avgrad.app.model_pool import BUNDLED
    from avgrad.app.session import Question, Session, sample_image
    from avgrad.app.sidebar import the_model_pool
    from avgrad.scenes.samples import samples

    session, obj = Session(the_model_pool()), samples()[0].objects[0]
    session.model(BUNDLED)
    sound = Question(obj.sound.name, "audio", obj.sound.read_bytes())
    session.sound(sound)
    answer, _ = session.localize(sample_image(0), [sound, Question(obj.text, "text", obj.text.encode())])
    assert answer is not None
    jpeg(overlay(answer.result, 0, Display()))
