"""The CLIP that prompts are for: loaded, with tokenizer and image processor, and checked that an adapter fits it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, CLIPConfig, CLIPModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from ..data.pixels import fit_image, stack_pixels
from ..encoding import base_revision, load_tokenizer, tokenize_classnames
from ..errors import short, some, whole_message
from ..pretrained import (
    check_plain_file,
    check_reachable,
    check_sizes,
    check_source,
    check_texts,
    checked_downloads,
    naming_source,
    read_json,
)
from ..tuners import PromptConfig

MAX_PIXELS = 4096  # along one side, that a processor may make of an image


def load_clip(
    path: str | os.PathLike[str] | None, *, adapter: str | None = None, dtype: Any = None, **hub: Any
) -> CLIPModel:
    """What `CLIPModel.from_pretrained` gives, from safetensors and JSON alone, everything checked before it is built.

    The commit that a repository is read at is kept as `config._commit_hash`, for the adapter to record.

    Raises:
        ValueError: the files hold another kind of model.
        OSError: not found, or damaged; the message names the repository or folder, and what to do.
    """
    if not path:
        raise ValueError(f"adapter {adapter!r:.80} does not say its base model: pass base_model_name_or_path")
    hint = "; pass the name or folder of a CLIP model" + (" as base_model_name_or_path" if adapter else "")
    what = f"the base model of adapter {adapter!r:.120}," if adapter else "the model"
    if os.path.isdir(path):
        path = os.path.abspath(path)  # found again from another working directory
    try:
        check_source(path, hub.get("revision"))
    except FileNotFoundError as error:
        raise OSError(
            f"cannot load {what} {os.fspath(path)!r:.200}: a folder that is not on this machine (it was local to the "
            f"author?){hint}"
        ) from error
    with naming_source(f"cannot load {what}", path, hint):
        check_reachable(path, CONFIG_NAME, **hub)
        with checked_downloads(path, **hub):
            config_file = cached_file(path, CONFIG_NAME, **hub)
        commit = extract_commit_hash(config_file, None)
        content = read_json(config_file)
        model_type = content.get("model_type")
        if model_type == "clip":
            weights = read_weights(path, **{**hub, **({"revision": commit} if commit else {})})
            model = make_clip(content, weights, dtype)
            model.name_or_path = model.config.name_or_path = os.fspath(path)
            model.config._commit_hash = commit
            return model
    raise ValueError(
        f"{os.fspath(path)!r:.200} is a {model_type!r:.80} model: hf-coop needs a CLIP with a causal text tower "
        "(transformers.CLIPModel)"
    )


def read_weights(path: str | os.PathLike[str], **hub: Any) -> dict[str, torch.Tensor]:
    """The tensors of `model.safetensors`, or of the parts that `model.safetensors.index.json` names.

    Args:
        path: repository or folder.
        hub: arguments of `cached_file`.

    Raises:
        ValueError: a part has the name of another place.
        OSError: there are none.
    """

    def fetch(name: str, needed: bool = True) -> str | None:
        with checked_downloads(path, **hub):
            return cached_file(path, name, **hub, _raise_exceptions_for_missing_entries=needed)

    names: list[Any] = [SAFE_WEIGHTS_NAME]
    if fetch(SAFE_WEIGHTS_NAME, needed=False) is None:
        index = fetch(SAFE_WEIGHTS_INDEX_NAME, needed=False)
        if index is None:
            raise OSError(
                f"it has no {SAFE_WEIGHTS_NAME}, and pickled weights are not read: name a revision that has it, such "
                "as the pull request of the Hub's converter, or save the model as safetensors"
            )
        names = sorted(set(read_json(index)["weight_map"].values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} names a file {name!r:.80}")
        file = fetch(name)
        assert file is not None
        check_plain_file(file)
        tensors |= load_file(file)
    return tensors


def make_clip(content: dict[str, Any], weights: dict[str, torch.Tensor], dtype: Any = None) -> CLIPModel:
    """The model that a config and weights describe; a config cannot ask for more memory than the weights fill.

    Args:
        content (`dict`): of `config.json`.
        weights (`dict[str, torch.Tensor]`): of all layers.
        dtype (`torch.dtype` or `str`, *optional*): of the model; default: fp32.

    Raises:
        ValueError: a size is out of bounds, or the weights are those of another model.
    """
    check_sizes(content)
    if "quantization_config" in content:
        raise ValueError("its weights are quantised: hf-coop needs plain ones")
    config = CLIPConfig(**{name: value for name, value in content.items() if not name.startswith("_")})
    held, needed = sum(tensor.numel() for tensor in weights.values()), least_values(config)
    if held < needed:
        raise ValueError(f"its weights hold {held} values, but {CONFIG_NAME} makes a model of at least {needed}")
    model, told = CLIPModel.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype or torch.float32, output_loading_info=True
    )
    if told["missing_keys"]:
        raise ValueError(f"its weights lack {short(some(sorted(told['missing_keys'])), 150)}")
    return model


def least_values(config: CLIPConfig) -> int:
    """How many values a CLIP holds in its large tensors: all but biases, norms and the like."""
    text, vision = config.text_config, config.vision_config
    blocks = [
        part.num_hidden_layers * part.hidden_size * (4 * part.hidden_size + 2 * part.intermediate_size)
        for part in (text, vision)
    ]
    patches = (vision.image_size // vision.patch_size) ** 2 + vision.num_channels * vision.patch_size**2
    words = text.vocab_size + text.max_position_embeddings
    return (
        sum(blocks)
        + text.hidden_size * (words + config.projection_dim)
        + vision.hidden_size * (patches + config.projection_dim)
    )


def check_device(device: torch.device | str | None) -> None:
    """Raise `ValueError` unless a model can be put on `device`; None leaves it where it is."""
    if device is None:
        return
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # of as many kinds as there are devices
        raise ValueError(
            f"no device {str(device)!r:.80} here: {short(whole_message(error), 150)}; leave it out, or give cpu"
        ) from error


def load_image_processor(config: PromptConfig, clip: CLIPModel, **hub: Any) -> Any:
    """The image processor that belongs to `clip`.

    Raises:
        ValueError: the model does not say where it comes from.
        OSError: there is none, or it does not make finite pixels of the size that the image tower takes.
    """
    name = clip.name_or_path or config.base_model_name_or_path
    if not name:
        raise ValueError("the base model has no name or path to load an image processor from; set image_processor")
    revision = base_revision(clip)
    with naming_source("cannot load the image processor of", name, "; set image_processor"):
        check_source(name, revision)
        with checked_downloads(name, **hub):
            check_texts(name, revision=revision, **hub)
            processor = AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=False, **hub)
        check_image_processor(processor, clip.config.vision_config)
    return processor


def check_image_processor(processor: Any, vision_config: Any) -> None:
    """Raise `ValueError` unless a processor makes of a small image what the image tower takes."""
    for field in ("size", "crop_size", "pad_size"):
        sizes = getattr(processor, field, None) or {}
        largest = max((size for size in dict(sizes).values() if size is not None), default=0)
        if not largest <= MAX_PIXELS:
            raise ValueError(f"{field} must be at most {MAX_PIXELS} pixels, got {sizes!r:.80}")
    pixels = stack_pixels(processor, [fit_image(processor, Image.new("RGB", (8, 8), "red"))])
    size = vision_config.image_size
    expected = (1, vision_config.num_channels, *(size if isinstance(size, (list, tuple)) else (size, size)))
    if pixels.shape != expected or not pixels.isfinite().all():
        raise ValueError(f"it makes pixels {tuple(pixels.shape)} of an image, the image tower takes {expected}")


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
    with naming_source("cannot use the tokenizer of", tokenizer.name_or_path, kind=ValueError):
        names = tokenize_classnames(tokenizer, config.classnames)
    for name, stored, ids in zip(config.classnames, config.token_ids or names.token_ids, names.token_ids, strict=True):
        if stored != ids:
            raise ValueError(
                f"token_ids of class name {name!r:.40} are {stored!s:.50}, but the tokenizer of "
                f"{tokenizer.name_or_path!r:.120} makes it {ids!s:.50}"
            )
    return tokenizer
