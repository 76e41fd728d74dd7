"""The errors of avgrad. Each message is one sentence that names what was wrong and what is accepted."""


class InputError(ValueError):
    """An argument or an input that cannot be used: the base of avgrad's own errors, which are the user's to mend."""


class MediaError(InputError):
    """An image, sound or video that cannot be read or used."""


class MediaWarning(UserWarning):
    """A video that is damaged from some place on, and was used up to there."""


class PromptError(InputError):
    """A prompt that cannot be used: none at all, an empty text, an unknown class, an embedding of the wrong width."""


class UnsupportedModelError(InputError):
    """There is no such model, or it has a part that the engine cannot express; explaining it anyway would be wrong."""


class CheckpointError(InputError):
    """A checkpoint that cannot be found, read or used."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the machine or of its accelerator is used up.

    torch raises `torch.OutOfMemoryError` on accelerators and a plain RuntimeError on the CPU.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(
        words in text
        for words in ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
    )
