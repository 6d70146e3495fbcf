"""Other libraries' errors as one line."""

from __future__ import annotations


def root_message(error: BaseException) -> str:
    """The message of what caused `error`."""
    while error.__cause__ is not None and str(error.__cause__).strip():
        error = error.__cause__
    return " ".join(str(error).split())


def whole_message(error: BaseException) -> str:
    """The message of `error`, and of what caused it where that says more."""
    message, root = " ".join(str(error).split()), root_message(error)
    return message if root in message else f"{message} ({root})"
