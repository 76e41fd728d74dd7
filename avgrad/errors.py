"""The errors of avgrad. Each message is one sentence that names what was wrong and what is accepted."""


class InputError(ValueError):
    """An argument or an input that cannot be used: the base of avgrad's own errors, which are the user's to mend."""


class MediaError(InputError):
    """An image, sound or video that cannot be read or used."""


class PromptError(InputError):
    """A prompt that cannot be used: none at all, an empty text, an unknown class, an embedding of the wrong width."""


class UnsupportedModelError(InputError):
    """There is no such model, or it has a part that the engine cannot express; explaining it anyway would be wrong."""


class CheckpointError(InputError):
    """A checkpoint that cannot be found, read or used."""
