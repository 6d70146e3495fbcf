"""Lets mkdocstrings read docstrings in the form of Hugging Face's: types in backticks, links like [`HFCoOp`]."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, NameResolutionError, Object

SECTION = re.compile(r"^(?:Args|Attributes|Raises):\n(?:(?: {4}.*)?(?:\n|\Z))+", re.MULTILINE)
ITEM = re.compile(r"^ {4}(\w[^:]*):\s+(.*(?:\n {8}.*)*)", re.MULTILINE)  # "names (types): text"
NAME = re.compile(r"(\w+)(?: \(((?:[^()]|\([^()]*\))*)\))?")  # a name and its type, which may hold parentheses
SHAPE = re.compile(r"of shape `[^`]+`")
LINK = re.compile(r"\[`~?([\w.]+)`\]")


class HuggingFaceDocstrings(Extension):
    """Rewrites docstrings to the Google style that griffe parses."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = SECTION.sub(lambda section: ITEM.sub(_one_item_a_name, section[0]), obj.docstring.value)
            obj.docstring.value = LINK.sub(lambda link: _reference(obj, link[1]), text)


def _one_item_a_name(item: re.Match[str]) -> str:
    """Types come from the signature, so only shapes are kept; names that share a type and a text get it one by one."""
    names, text = item.groups()
    items, shape = [], None
    for name, kind in reversed(NAME.findall(names)):
        shape = SHAPE.search(kind) if kind else shape
        items.append(f"    {name}: {shape[0]}; {text}" if shape else f"    {name}: {text}")
    return "\n".join(reversed(items))


def _reference(obj: Object, name: str) -> str:
    """A link to what is in the reference, the bare name of what is not."""
    first, *rest = name.split(".")
    try:
        path = ".".join([obj.resolve(first), *rest])
    except NameResolutionError:
        path = name
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
