"""Foreign images and sounds, checked once where they enter."""

from avgrad.media.audio import Audio, open_audio
from avgrad.media.image import load_image
from avgrad.media.source import as_list, source_name

__all__ = ["Audio", "as_list", "load_image", "open_audio", "source_name"]
