"""The tokenizer of a CLIP, from wherever the CLIP came from."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, CLIPModel

from ..pretrained import check_source, check_texts, checked_downloads, naming_source

NO_TOKENIZER = "; pass tokenizer_name_or_path, a folder or repository that has the base model's tokenizer"


def base_revision(model: CLIPModel) -> str | None:
    """The commit that `model` was loaded at, where it comes from the Hub: its other files are read at the same."""
    return getattr(model.config, "_commit_hash", None)


def load_tokenizer(model: CLIPModel, name_or_path: str | None = None, **hub: Any) -> Any:
    """The tokenizer of `model`, or the one that `name_or_path` names.

    Args:
        model (`CLIPModel`): whose files are looked at, at the commit that it was loaded at.
        name_or_path (`str`, *optional*): another repository or folder.
        hub: `token`, `cache_dir`, `local_files_only`, as in `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError: there is none, or it is damaged; the repository or folder is named.
    """
    name = name_or_path or model.name_or_path
    with naming_source("no tokenizer found at", name or "", NO_TOKENIZER, ValueError):
        if not name:
            raise ValueError("the model was not loaded from a folder or repository")
        revision = base_revision(model) if name == model.name_or_path else None
        check_source(name, revision)
        with checked_downloads(name, **hub):
            check_texts(name, revision=revision, **hub)
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **hub)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder with no vocabulary
            raise ValueError("it has no vocabulary")
        tokenizer(["a photo of a cat."])  # may fail though it was loaded
        return tokenizer
