"""The CLIP that prompts are for: loaded, with tokenizer and image processor, and checked that an adapter fits it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, CLIPModel
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from ..encoding import base_revision, load_tokenizer, tokenize_classnames
from ..errors import whole_message
from ..tuners import PromptConfig


def load_clip(
    path: str | os.PathLike[str] | None, *, adapter: str | None = None, dtype: Any = None, **hub: Any
) -> CLIPModel:
    """`CLIPModel.from_pretrained`, with an error that says what to do where the model is not there.

    The commit that a repository is read at is kept as `config._commit_hash`, for the adapter to record.

    Raises:
        ValueError: the files hold another kind of model.
        OSError: not found.
    """
    if not path:
        raise ValueError(f"adapter {adapter!r} does not say its base model: pass base_model_name_or_path")
    try:
        commit = extract_commit_hash(cached_file(path, CONFIG_NAME, **hub), None)
        if commit is not None:
            hub["revision"] = commit
        model_type = AutoConfig.from_pretrained(path, **hub).model_type
        if model_type == "clip":
            model = CLIPModel.from_pretrained(path, dtype=dtype or torch.float32, **hub)
            model.config._commit_hash = commit
            return model
    except (OSError, ValueError) as error:
        whose = f"the base model of adapter {adapter!r}, " if adapter else ""
        local = os.path.isabs(path) and not os.path.isdir(path)
        hint = (
            "a folder that is not on this machine (it was local to the author?); "
            if local
            else f"({whole_message(error)}); "
        )
        raise OSError(
            f"cannot load {whose}{os.fspath(path)!r}: {hint}pass the name or folder of a CLIP model"
            + (" as base_model_name_or_path" if adapter else "")
        ) from error
    raise ValueError(
        f"{os.fspath(path)!r} is a {model_type!r} model: hf-coop needs a CLIP with a causal text tower "
        "(transformers.CLIPModel)"
    )


def check_device(device: torch.device | str | None) -> None:
    """Raise `ValueError` unless a model can be put on `device`; None leaves it where it is."""
    if device is None:
        return
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # of as many kinds as there are devices
        why = f"{whole_message(error):.150}"
        raise ValueError(f"no device {str(device)!r} here: {why}; leave it out, or give cpu") from error


def load_image_processor(config: PromptConfig, clip: CLIPModel, **hub: Any) -> Any:
    """The image processor that belongs to `clip`."""
    name = clip.name_or_path or config.base_model_name_or_path
    if not name:
        raise ValueError("the base model has no name or path to load an image processor from; set image_processor")
    return AutoImageProcessor.from_pretrained(name, revision=base_revision(clip), **hub)


def check_adapter_config(config: PromptConfig, clip: CLIPModel, **hub: Any) -> Any:
    """Check the config of a stranger's adapter against the model it is to be loaded on.

    Returns:
        The tokenizer, or None where there is none, which an adapter that holds its token ids does not need.

    Raises:
        ValueError: the token ids or prompts do not fit the model, or are not those of the class names.
    """
    tokenizer = None
    with suppress(ValueError):
        tokenizer = load_tokenizer(clip, config.tokenizer_name_or_path, **hub)
    if not config.needs_tokenizer:
        config.check_fits(clip, tokenizer)
    if tokenizer is None:
        return None
    names = tokenize_classnames(tokenizer, config.classnames)
    for name, stored, ids in zip(config.classnames, config.token_ids or names.token_ids, names.token_ids, strict=True):
        if stored != ids:
            raise ValueError(f"token_ids of class name {name!r} are {stored}, but the tokenizer makes it {ids}")
    return tokenizer
