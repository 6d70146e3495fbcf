"""Adapter files on disk: fetched, checked before use, and written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open

from .tuners.coop import PromptConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 32 * 2**20


def fetch_adapter(model_id: str | os.PathLike[str], subfolder: str | None = None, **hub: Any) -> str:
    """The local folder with the config and the weights of an adapter, downloaded if `model_id` is a repository.

    Args:
        model_id: a folder or a Hub repository.
        subfolder: where in it the adapter lies.
        hub: arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: it has no `adapter_config.json` or no `adapter_model.safetensors`.
        OSError: no such folder or repository.
    """
    if os.path.isdir(model_id):
        folder = os.path.join(model_id, subfolder or "")
        present = os.listdir(folder) if os.path.isdir(folder) else []
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if name not in present:
                raise ValueError(_missing_file(name, folder, present))
        return folder
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            path = hf_hub_download(os.fspath(model_id), name, subfolder=subfolder, **hub)
        except EntryNotFoundError as error:
            raise ValueError(_missing_file(name, os.fspath(model_id), [])) from error
    return os.path.dirname(path)


def _missing_file(name: str, where: str, present: list[str]) -> str:
    message = f"no {name} in {where!r}"
    pickled = [file for file in present if file.endswith((".bin", ".pt", ".pth"))]
    if name == WEIGHTS_FILE and pickled:
        return (
            f"{message}, only {', '.join(pickled)}: pickled weights can run code and are not read. Ask the author to "
            "save the adapter as safetensors (model.save_pretrained)"
        )
    return f"{message}: an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}"


def read_adapter_config(folder: str) -> PromptConfig:
    """Read and check `adapter_config.json`, and the header of the weights beside it.

    Fields that this version does not know are left out with a warning.

    Raises:
        ValueError: naming the file and the value that is wrong.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if (size := os.path.getsize(path)) > MAX_CONFIG_BYTES:
        raise ValueError(f"{path}: {size} bytes, an adapter config has at most {MAX_CONFIG_BYTES}")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        peft_type = content["peft_type"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no adapter config: {error!r}") from error
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type) if isinstance(peft_type, str) else None
    if config_class is None or not issubclass(config_class, PromptConfig):
        raise ValueError(f"{path}: peft_type is {peft_type!r}; hf-coop loads COOP and COCOOP adapters")
    known = {field.name for field in fields(config_class) if field.init}
    if unknown := sorted(content.keys() - known):
        warnings.warn(f"{path}: fields {unknown} are not known to this version and ignored", stacklevel=3)
    try:
        config = config_class(**{name: value for name, value in content.items() if name in known})
        if not config.classnames:
            raise ValueError("no classnames")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    weights = os.path.join(folder, WEIGHTS_FILE)
    try:
        with safe_open(weights, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights} is damaged or no safetensors file: {error}") from error
    return config


@contextmanager
def staged_folder(folder: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary folder beside `folder`; on success its files are moved into `folder`, each in one step.

    Raises:
        ValueError: `folder` is a file.
    """
    target = Path(folder)
    if target.is_file():
        raise ValueError(f"cannot save to {str(folder)!r}: it is a file, not a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield str(staging)
        for path in sorted(staging.rglob("*")):
            place = target / path.relative_to(staging)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
