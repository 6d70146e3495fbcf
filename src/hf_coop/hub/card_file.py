"""A `README.md` that is written again: what hf-coop wrote is renewed, what people wrote stays.

The generated part of a card stands between two comments, which nobody sees in the rendered page; the first holds a
hash of it. A part that still has its hash was changed by nobody, and is replaced at the next save. One that was
edited, and a README.md without such a part, is somebody's own: its text stays as it is, and only the metadata on top
are brought up to date, as PEFT does.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

REPO_PLACEHOLDER = "your-name/your-adapter"  # stands in a saved card for the repository, which a push fills in
CARD_DATA_KEY = "hf_coop"  # the card's metadata keep `CardDetails` under it
MEASURED = ("model-index", CARD_DATA_KEY)  # metadata that would be wrong of another prompt
LISTS = ("tags", "datasets")  # metadata to which people add
HINT = "written by hf-coop, and anew at each save unless somebody changes it; add text above or below"
END = "<!-- hf-coop end -->"
FIGURES = re.compile(r"^## What learning changed\n.*?(?=^## )", re.DOTALL | re.MULTILINE)  # as the template has it
GENERATED = re.compile(rf"<!-- hf-coop ([0-9a-f]{{16}}): [^\n]*-->\n(.*)\n{re.escape(END)}", re.DOTALL)


def write_card(card: ModelCard, path: Path) -> None:
    """Write a generated card, or into the README.md that is there what is to be renewed in it."""
    metadata, text = card.data.to_dict(), card.text.strip("\n")
    if path.is_file():
        try:
            content = update_card(path.read_text(encoding="utf-8"), metadata, text)
        except (ValueError, yaml.YAMLError) as error:
            warnings.warn(
                f"{path.name} stays as it is, without what hf-coop would add to its metadata, since they cannot be "
                f"read: {error!s:.200}",
                stacklevel=2,
            )
            return
    else:
        content = _card(metadata, _marked(text))
    path.write_text(content, encoding="utf-8")


def update_card(existing: str, metadata: dict[str, Any], text: str) -> str:
    """The README.md that comes after `existing`.

    Args:
        existing (`str`): its content.
        metadata (`dict`), text (`str`): of the newly generated card.

    Raises:
        ValueError, yaml.YAMLError: the metadata of `existing` cannot be read.
    """
    old, body = _split(existing)
    merged = {name: value for name, value in old.items() if name not in MEASURED} | metadata
    for name in LISTS:
        if values := [*metadata.get(name, ()), *(old.get(name) or ())]:
            merged[name] = list(dict.fromkeys(values))
    if generated := _intact_part(body):
        body = body[: generated.start()] + _marked(text) + body[generated.end() :]
    return _card(merged, body)


def for_repository(local: str, repo_id: str, on_hub: str | None = None, subfolder: str = "") -> str:
    """The card to push: `local` with the name of the repository in it.

    Where nobody wrote anything into `local`, but somebody did into the card on the Hub, that text stays.

    Args:
        local (`str`): content of the README.md to push.
        repo_id (`str`): where to.
        on_hub (`str`, *optional*): content of the README.md there.
        subfolder (`str`): where it lies in the repository, which loading must be told too.
    """

    def named(text: str) -> str:
        where = f'"{repo_id}", subfolder={json.dumps(subfolder)}' if subfolder else f'"{repo_id}"'
        return text.replace(f'"{REPO_PLACEHOLDER}"', where)  # no name of a class, where quotes are escaped

    generated = _intact_part(local)
    if generated is None:
        return named(local)
    text = named(generated[2])
    metadata, body = _split(local)
    if on_hub is not None and GENERATED.fullmatch(body.strip()):
        try:
            return update_card(on_hub, metadata, text)
        except (ValueError, yaml.YAMLError):  # whose metadata are no use
            pass
    before, after = local[: generated.start()], local[generated.end() :]
    return named(before) + _marked(text) + named(after)


def without_figures(card: str) -> str:
    """The card without its section of figures, for a folder that lacks them; what somebody edited stays."""
    generated = _intact_part(card)
    if generated is None:
        return card
    return card[: generated.start()] + _marked(FIGURES.sub("", generated[2])) + card[generated.end() :]


def _split(content: str) -> tuple[dict[str, Any], str]:
    """Metadata and text of a README.md."""
    block = REGEX_YAML_BLOCK.search(content)
    if block is None:
        return {}, content
    metadata = yaml.safe_load(block[2])
    if not isinstance(metadata, dict | None):
        raise ValueError(f"they are no mapping but {metadata!r:.80}")
    return metadata or {}, content[block.end() :]


def _card(metadata: dict[str, Any], body: str) -> str:
    return f"---\n{yaml_dump(metadata, sort_keys=False, line_break=chr(10))}---\n{body.rstrip(chr(10))}\n"


def _marked(text: str) -> str:
    return f"<!-- hf-coop {_digest(text)}: {HINT} -->\n{text}\n{END}"


def _intact_part(body: str) -> re.Match[str] | None:
    """The generated part, unless somebody changed it."""
    found = GENERATED.search(body)
    return found if found and _digest(found[2]) == found[1] else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
