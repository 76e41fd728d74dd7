"""FFmpeg's log, which PyAV can hand to Python."""

from __future__ import annotations


def keep_quiet() -> None:
    """Lets FFmpeg log by itself, and nothing: called whenever a file is opened.

    With a level of PyAV's own (`av.logging.set_level`, which torchvision calls when it is imported) every message of
    FFmpeg goes to Python, which needs the interpreter's lock. A decoder's thread that has something to say waits for it
    forever where the main thread holds the lock and waits for that thread, as PyAV does on closing a file.
    """
    import av

    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.PANIC)
