"""Foreign images and sounds, checked once where they enter."""

from avgrad.media.audio import Audio, open_audio
from avgrad.media.image import load_image

__all__ = ["Audio", "load_image", "open_audio"]
