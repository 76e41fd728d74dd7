"""Many images: prompts located in whole collections, kept as Parquet, read and searched."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
