"""FFmpeg's log, which PyAV hands to Python."""

from __future__ import annotations

from functools import cache


@cache
def keep_quiet() -> None:
    """Lets FFmpeg log by itself, and nothing: called before a file is opened.

    PyAV takes every message to Python, which needs the interpreter's lock. A decoder's thread that has something to
    say waits for it forever where the main thread holds the lock and waits for that thread, as PyAV 14 does on closing
    a file. A program that has chosen a level itself (`av.logging.set_level`) keeps it.
    """
    import av

    if av.logging.get_level() is None:
        av.logging.restore_default_callback()
        av.logging.set_libav_level(av.logging.PANIC)
