"""What goes into one line of a message: other libraries' errors, and lists."""

from __future__ import annotations

from collections.abc import Iterable


def root_message(error: BaseException) -> str:
    """The message of what caused `error`."""
    while error.__cause__ is not None and str(error.__cause__).strip():
        error = error.__cause__
    return " ".join(str(error).split())


def whole_message(error: BaseException) -> str:
    """The message of `error`, and of what caused it where that says more."""
    message, root = " ".join(str(error).split()), root_message(error)
    return message if root in message else f"{message} ({root})"


def some(values: Iterable[object]) -> str:
    """The first few of a list of values, and how many there are."""
    values = list(values)
    return (", ".join(map(str, values[:10])) or "none") + (f" … ({len(values)})" if len(values) > 10 else "")
