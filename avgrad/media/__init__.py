"""Foreign images and sounds, checked once where they enter."""

from avgrad.media.audio import Audio, open_audio
from avgrad.media.image import load_image
from avgrad.media.source import as_list, source_name
from avgrad.media.video import Video, open_video

__all__ = ["Audio", "Video", "as_list", "load_image", "open_audio", "open_video", "source_name"]
