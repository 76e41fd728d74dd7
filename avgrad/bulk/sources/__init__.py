"""Collections of images: one file per kind of source."""

from avgrad.bulk.sources.registry import Source, is_collection, list_items, source

__all__ = ["Source", "is_collection", "list_items", "source"]
