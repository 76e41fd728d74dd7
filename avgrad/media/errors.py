"""The error that every check of foreign input raises."""


class MediaError(ValueError):
    """An input that cannot be used; the message says in one sentence what is wrong and what is accepted."""
