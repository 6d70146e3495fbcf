"""Adapter files: fetched, and checked before use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from ..errors import short, some, whole_message
from ..escaping import one_line
from ..evaluation.card_figures import FIGURE_FILES
from ..pretrained import (
    UnreachableHubError,
    check_plain_file,
    check_reachable,
    check_source,
    checked_downloads,
    read_json,
)
from ..tuners import PromptConfig, config_class_of
from ..tuners.model import check_values

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, *FIGURE_FILES)


def fetch_adapter(model_id: str | os.PathLike[str], subfolder: str | None = None, **hub: Any) -> str:
    """The local folder of an adapter's files, downloaded if `model_id` is a repository.

    Args:
        model_id: a folder or a Hub repository.
        subfolder: where in it the adapter lies.
        hub: arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: it has no `adapter_config.json` or no `adapter_model.safetensors`, or the name of the repository or
            revision cannot be one.
        OSError: no such folder or repository, or it can be reached neither on the Hub nor in the cache.
    """
    check_source(model_id, hub.get("revision"), subfolder)
    if os.path.isdir(model_id):
        folder = os.path.join(model_id, subfolder) if subfolder else os.fspath(model_id)
        present = os.listdir(folder) if os.path.isdir(folder) else []
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if name not in present:
                raise ValueError(_missing_file(name, folder, present))
        return folder
    repo_id = os.fspath(model_id)
    with _naming_repository(repo_id, CONFIG_FILE, subfolder, hub):
        asked = check_reachable(repo_id, *_within(subfolder, CONFIG_FILE, WEIGHTS_FILE), **hub)
    path = _download(repo_id, CONFIG_FILE, subfolder, hub)
    _download(repo_id, WEIGHTS_FILE, subfolder, hub)
    with suppress(ValueError, OSError):  # the card is not needed
        if not asked:
            check_reachable(repo_id, *_within(subfolder, CARD_FILE), **hub)
        _download(repo_id, CARD_FILE, subfolder, hub)
    return os.path.dirname(path)


def _within(subfolder: str | None, *names: str) -> list[str]:
    return [f"{subfolder}/{name}" if subfolder else name for name in names]


def _download(repo_id: str, name: str, subfolder: str | None, hub: dict[str, Any]) -> str:
    with _naming_repository(repo_id, name, subfolder, hub), checked_downloads(repo_id, **hub):
        return hf_hub_download(repo_id, name, subfolder=subfolder, **hub)


@contextmanager
def _naming_repository(repo_id: str, name: str, subfolder: str | None, hub: dict[str, Any]) -> Iterator[None]:
    """Make one error of whatever goes wrong while a file is fetched, which names it and says what to do."""
    try:
        yield
    except (LocalEntryNotFoundError, UnreachableHubError) as error:
        offline = is_offline_mode() or hub.get("local_files_only")
        state = "is switched off (offline mode or local_files_only)" if offline else "cannot be reached"
        raise OSError(f"{repo_id!r} is no folder and not in the cache ({name}), and the Hub {state}") from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"{repo_id!r} is neither a folder nor a repository on the Hub that you may read: check the name, and for "
            "a private one log in (hf auth login) or pass token"
        ) from error
    except RevisionNotFoundError as error:
        raise OSError(f"repository {repo_id!r} has no revision {hub.get('revision')!r}") from error
    except EntryNotFoundError as error:
        options = {name: hub.get(name) for name in ("revision", "token")}
        prefix, in_repo = f"{subfolder}/" if subfolder else "", []
        with suppress(Exception):  # it only helps the message
            in_repo = HfApi().list_repo_files(repo_id, **options)
        present = [file.removeprefix(prefix) for file in in_repo if file.startswith(prefix)]
        raise ValueError(_missing_file(name, f"{repo_id}/{prefix}".rstrip("/"), present)) from error
    except Exception as error:  # the client raises errors of many kinds
        raise OSError(f"cannot fetch {name} of {repo_id!r}: {whole_message(error)}") from error


def _missing_file(name: str, where: str, present: list[str]) -> str:
    message = f"no {name} in {where!r}"
    pickled = [file for file in present if file.endswith((".bin", ".pt", ".pth"))]
    if name == WEIGHTS_FILE and pickled:
        return (
            f"{message}, only {one_line(some(pickled))}: pickled weights can run code and are not read. Ask the "
            "author to save the adapter as safetensors (model.save_pretrained)"
        )
    return f"{message}: an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}"


def read_adapter_config(folder: str | os.PathLike[str]) -> PromptConfig:
    """Read and check `adapter_config.json`, and the weights beside it as far as that can be done without a model.

    Fields that this version does not know are left out with a warning.

    Raises:
        ValueError: naming the file and the value that is wrong.
    """
    path = os.path.join(folder, CONFIG_FILE)
    content = read_json(path)
    peft_type: Any = content.get("peft_type")
    try:
        config_class = config_class_of(peft_type)
    except ValueError as error:
        raise ValueError(f"{path}: peft_type is {peft_type!r:.80}, no method of hf-coop: {error}") from error
    known = {field.name for field in fields(config_class) if field.init}
    if unknown := sorted(content.keys() - known):
        names = ", ".join(f"{name!r:.40}" for name in unknown[:8])
        warnings.warn(f"{path}: unknown fields are ignored (of a later version?): {names}", stacklevel=3)
    with naming_file(path):
        config = config_class(**{name: value for name, value in content.items() if name in known})
        if not config.classnames:
            raise ValueError("no classnames")
        if config.n_ctx is None:
            raise ValueError("no n_ctx")
    weights = os.path.join(folder, WEIGHTS_FILE)
    check_plain_file(weights)
    with naming_file(weights):
        _check_weights(weights, config)
    return config


def _check_weights(path: str, config: PromptConfig) -> None:
    """Raise `ValueError` unless the context has the shape that `config` gives it and all values are finite."""
    assert config.n_ctx is not None
    expected = [config.n_ctx]
    if config.class_specific_context:
        expected.insert(0, len(config.classnames))
    try:
        with safe_open(path, framework="pt") as file:
            contexts = [name for name in file.keys() if name.split(".")[-1] == "ctx"]  # noqa: SIM118 - no mapping
            if len(contexts) != 1:
                raise ValueError(f"holds {len(contexts)} tensors named ctx, an adapter has one")
            shape = file.get_slice(contexts[0]).get_shape()
            if shape[:-1] != expected:
                raise ValueError(
                    f"{contexts[0]:.120} has shape {shape}, but {CONFIG_FILE} makes it "
                    f"{[*expected, 'width of the tower']}"
                )
            for name in file.keys():  # noqa: SIM118
                check_values(name, file.get_tensor(name))
    except (SafetensorError, OSError, RuntimeError) as error:  # the latter of dtypes that torch has no operations for
        raise ValueError(f"damaged or no safetensors file: {error}") from error


@contextmanager
def naming_file(path: str) -> Iterator[None]:
    """Put `path` in front of what an error says, cut where long, and make it a `ValueError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # a file that somebody has made up can end in any error
        raise ValueError(f"{path}: {short(error)}") from error
