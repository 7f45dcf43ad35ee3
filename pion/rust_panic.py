"""Recognize a panic of a library that is written in Rust, such as tokenizers or safetensors."""


def is_panic(error: BaseException) -> bool:
    """Return whether a library in Rust failed inside its own code.

    Such an error is a BaseException, so that `except Exception` does not catch it, and its class
    can't be imported.
    """
    return type(error).__name__ == "PanicException"
