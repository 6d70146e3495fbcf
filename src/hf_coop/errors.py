"""What goes into one line of a message: other libraries' errors, strangers' text, and lists; and checks of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from .escaping import one_line

MAX_MESSAGE = 300


def short(text: object, length: int = MAX_MESSAGE) -> str:
    """`text` on one line, its middle left out where it is long: what is wrong often stands at the end."""
    line = one_line(str(text))
    return line if len(line) <= length else f"{line[: length // 2 - 2]} … {line[-(length // 2 - 1) :]}"


def root_message(error: BaseException) -> str:
    """The message of what caused `error`."""
    while error.__cause__ is not None and str(error.__cause__).strip():
        error = error.__cause__
    return short(error)


def whole_message(error: BaseException) -> str:
    """The message of `error`, and of what caused it where that says more."""
    message, root = short(error), root_message(error)
    return message if root in message else f"{message} ({root})"


def some(values: Iterable[object]) -> str:
    """The first few of a list of values on one line, and how many there are."""
    values = list(values)
    return (", ".join(one_line(str(value)) for value in values[:10]) or "none") + (
        f" … ({len(values)})" if len(values) > 10 else ""
    )


def check_counts(**counts: Any) -> None:
    """Refuse options, given by their names, that are no whole numbers from 1; NumPy's numbers are taken too.

    Raises:
        TypeError: one is no whole number.
        ValueError: one is less than 1.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} must be a whole number, got {value!r:.80}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
