"""The CLIP that prompts are for: loaded, with tokenizer and image processor, and checked that an adapter fits it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from ..encoding.prompts import tokenize_classnames
from ..errors import whole_message

if TYPE_CHECKING:
    from ..tuners.coop import PromptConfig

LEGACY_EOS_TOKEN_ID = 2  # what old CLIP configs say; such towers pool at the highest token id, which is EOS


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


def base_revision(model: CLIPModel) -> str | None:
    """The commit that `model` was loaded at, where it comes from the Hub: its other files are read at the same."""
    return getattr(model.config, "_commit_hash", None)


def load_tokenizer(config: PromptConfig, model: CLIPModel, **hub: Any) -> Any:
    """The tokenizer that `config` names, else the base model's."""
    name = config.tokenizer_name_or_path or model.name_or_path
    try:
        if not name:
            raise OSError("the model was not loaded from a folder or repository")
        own = name == model.name_or_path
        tokenizer = AutoTokenizer.from_pretrained(name, revision=base_revision(model) if own else None, **hub)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder with no vocabulary
            raise OSError("it has no vocabulary")
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"no tokenizer found at {name!r} ({error}); pass tokenizer_name_or_path, a folder or repository that "
            "has the base model's tokenizer"
        ) from error


def load_image_processor(config: PromptConfig, clip: CLIPModel, **hub: Any) -> Any:
    """The image processor that belongs to `clip`."""
    name = clip.name_or_path or config.base_model_name_or_path
    if not name:
        raise ValueError("the base model has no name or path to load an image processor from; set image_processor")
    return AutoImageProcessor.from_pretrained(name, revision=base_revision(clip), **hub)


def check_fits_model(config: PromptConfig, model: CLIPModel) -> None:
    """Raise `ValueError` unless the model's vocabulary has the token ids of `config`, and its tower their room."""
    text_config, token_ids = model.config.text_config, config.token_ids or []
    largest = max(i for ids in (*token_ids, config.ctx_token_ids or []) for i in ids)
    eos = token_ids[0][-1]
    if largest >= text_config.vocab_size or text_config.eos_token_id not in (eos, LEGACY_EOS_TOKEN_ID):
        raise ValueError(
            f"the adapter's token ids (up to {largest}, end token {eos}) are not those of the base model "
            f"{model.name_or_path!r} ({text_config.vocab_size} tokens, end token {text_config.eos_token_id}): "
            "it was made for a model with another tokenizer"
        )
    longest = max(range(len(token_ids)), key=lambda k: len(token_ids[k]))  # all at once may be too many to lay out
    config.layout([longest]).check_fits(text_config.max_position_embeddings, [config.classnames[longest]])


def check_adapter_config(config: PromptConfig, clip: CLIPModel, **hub: Any) -> Any:
    """Check the config of a stranger's adapter against the model it is to be loaded on.

    Returns:
        The tokenizer, or None where there is none, which an adapter that holds its token ids does not need.

    Raises:
        ValueError: the token ids or prompts do not fit the model, or are not those of the class names.
    """
    if not config.needs_tokenizer:
        check_fits_model(config, clip)
    try:
        tokenizer = load_tokenizer(config, clip, **hub)
    except ValueError:
        return None
    names = tokenize_classnames(tokenizer, config.classnames)
    for name, stored, ids in zip(config.classnames, config.token_ids or names.token_ids, names.token_ids, strict=True):
        if stored != ids:
            raise ValueError(f"token_ids of class name {name!r} are {stored}, but the tokenizer makes it {ids}")
    return tokenizer
