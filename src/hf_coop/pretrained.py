"""Files that others wrote, of models, tokenizers and processors: their names checked, their failures told alike."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from .errors import short, some, whole_message

# What a config may ask for, so that it cannot ask for any memory or time; the largest CLIP has a tenth of it.
MAX_SIZES = {
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "projection_dim": 2**16,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**16,
    "image_size": 4096,
    "patch_size": 4096,
    "num_channels": 64,
    "num_labels": 2**17,
}
NOT_OF_CLIP = ("attn_implementation", "experts_implementation", "auto_map")  # what would fetch code
# What transformers reads of a tokenizer or an image processor.
TEXTS = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json", "spiece.model"),
)
MAX_JSON_BYTES = 32 * 2**20
MAX_NAME = 1000  # characters of a path, or of a revision
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What `git check-ref-format` refuses, and what cannot be seen.
NO_REVISION = re.compile(r"^[/.-]|[/.]$|//|/\.|\.\.|\.lock(/|$)|@\{|^@$|[ ~^:?*\[\\]")


def check_revision(revision: Any) -> None:
    """Raise unless `revision` can be a branch, tag or commit, or is None: it becomes part of paths in the cache.

    Raises:
        TypeError: it is no string.
        ValueError: git allows no such name.
    """
    if revision is None:
        return
    if not isinstance(revision, str):
        raise TypeError(f"revision must be a string, got {revision!r:.80}")
    if not revision or NO_REVISION.search(revision) or not revision.isprintable() or len(revision) > MAX_NAME:
        raise ValueError(f"revision must be the name of a branch, tag or commit, got {revision!r:.80}")


def check_name_or_path(field: str, name: Any) -> None:
    """Raise unless `name` can be a repository or a path, or is None.

    Raises:
        TypeError: it is neither string nor path.
        ValueError: it has characters that cannot be seen or written.
    """
    if name is None:
        return
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"{field} must be a string, got {name!r:.80}")
    if not str(name).isprintable() or len(str(name)) > MAX_NAME:
        raise ValueError(f"{field} must name a repository or a folder, got {str(name)!r:.80}")


def check_source(name: str | os.PathLike[str], revision: str | None = None, subfolder: str | None = None) -> None:
    """Raise unless `name` is a folder here or can be a repository's name, before anything is asked of it.

    Raises:
        ValueError: `revision` is no name, or `subfolder` leads out.
        FileNotFoundError: it is neither.
    """
    check_name_or_path("the name of a repository or folder", name)
    check_revision(revision)
    if subfolder and (os.path.isabs(subfolder) or ".." in Path(subfolder).parts or not subfolder.isprintable()):
        raise ValueError(f"subfolder must be a folder within, got {subfolder!r:.80}")
    if os.path.isdir(name):
        return
    try:
        validate_repo_id(os.fspath(name))
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{os.fspath(name)!r:.200} is neither a folder on this machine nor the name of a repository (user/name)"
        ) from error


class UnreachableHubError(OSError):
    """The Hub does not answer, and what is asked of it is not in the cache."""


def check_reachable(name: str | os.PathLike[str], *files: str, **hub: Any) -> bool:
    """Raise at once where a file must be fetched but nobody answers: the client would try again for half a minute.

    Args:
        name: repository or folder.
        files (`str`): in it.
        hub: arguments of `hf_hub_download`.

    Returns:
        Whether the Hub was asked; not where all files are in the cache.

    Raises:
        UnreachableHubError: there is no network, say.
    """
    if os.path.isdir(name) or hub.get("local_files_only") or is_offline_mode():
        return False
    place = {"cache_dir": hub.get("cache_dir"), "revision": hub.get("revision")}
    if all(try_to_load_from_cache(os.fspath(name), file, **place) is not None for file in files):
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of the HTTP library, which has changed its name before
        raise UnreachableHubError(f"the Hub cannot be reached: {short(error)}") from error
    return True


@contextmanager
def checked_downloads(name: str | os.PathLike[str], cache_dir: str | None = None, **unused: Any) -> Iterator[None]:
    """Compare with its hash whatever the Hub's client fetches of a repository inside, also where that then fails.

    The client checks sizes alone, and what it has once taken for right it never fetches again: a file that was damaged
    on its way is deleted from the cache. In a cache without links (Windows) files have no hashes for names, and are
    not checked.

    Args:
        name: repository; nothing is done for a folder.
        cache_dir (`str`, *optional*): as in `hf_hub_download`.

    Raises:
        OSError: a file was damaged.
    """
    if os.path.isdir(name):
        yield
        return
    folder = repo_folder_name(repo_id=os.fspath(name), repo_type="model")
    blobs = Path(cache_dir or constants.HF_HUB_CACHE, folder, "blobs")
    before = set(blobs.glob("*"))
    try:
        yield
    finally:
        for blob in sorted({*blobs.glob("*")} - before):
            check_download(blob)


def check_download(blob: Path) -> None:
    """Delete a file from the Hub's cache, and raise, where it is not what its name says: a hash of its content.

    Raises:
        OSError: the file was damaged on its way.
    """
    if not BLOB.fullmatch(blob.name):
        return
    with blob.open("rb") as file:
        if len(blob.name) == 64:  # of large files
            found = hashlib.file_digest(file, "sha256").hexdigest()
        else:  # as git has it
            content = file.read()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if found != blob.name:
        stored = blob.resolve()  # a link, where repositories share their files
        blob.unlink()
        stored.unlink(missing_ok=True)
        raise OSError("a file was damaged while it was fetched, and is deleted from the cache: try again")


@contextmanager
def naming_source(
    what: str, name: str | os.PathLike[str], hint: str = "", kind: type[Exception] = OSError
) -> Iterator[None]:
    """Make one error of whatever goes wrong inside, which names what was to be read.

    Libraries raise about anything on files that somebody has made up, the tokenizers' Rust even what is no
    `Exception`. A `MemoryError` is such a failure too.

    Args:
        what (`str`): what stands before the name: "cannot load the model".
        name: the repository or folder.
        hint (`str`): what to do.
        kind (`type`): of the error.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        told = isinstance(error, (OSError, ValueError))
        why = whole_message(error) if told else f"{type(error).__name__}: {error}"
        raise kind(f"{what} {os.fspath(name)!r:.120}: {short(why, 150)}{hint}") from error


def check_plain_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Raise unless `path` is a plain file, or a link to one: reading a device or pipe never ends, or never begins.

    Args:
        path: the file.
        max_bytes (`int`, *optional*): what it may have at most.

    Raises:
        ValueError: it is something else, empty, or larger.
        OSError: there is none.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"{os.fspath(path)} is no plain file")
    if state.st_size == 0:  # as the kernel says of its own files, which may never end
        raise ValueError(f"{os.fspath(path)} is empty")
    if max_bytes is not None and state.st_size > max_bytes:
        raise ValueError(f"{os.fspath(path)} has {state.st_size} bytes, at most {max_bytes} are read")


def check_texts(name: str | os.PathLike[str], **hub: Any) -> None:
    """Check what a library is about to read of a folder or repository, beside weights.

    Args:
        name: the folder, whose texts must be plain files of at most `MAX_JSON_BYTES`; or the repository.
        hub: arguments of `cached_file`, to look at the sizes in its `config.json`, where it has one.

    Raises:
        ValueError: something is no plain file, too large, or asks for too much.
        OSError: the repository cannot be read.
    """
    for text in TEXTS if os.path.isdir(name) else ():
        if (path := Path(name, text)).exists():
            check_plain_file(path, MAX_JSON_BYTES)
    config = cached_file(name, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if config is not None:
        check_sizes(read_json(config))


def check_sizes(content: dict[str, Any]) -> None:
    """Raise `ValueError` unless all sizes in a model's config are whole numbers within `MAX_SIZES`."""
    for name, largest in MAX_SIZES.items():
        value = content.get(name)
        for size in value if isinstance(value, list) else [value]:
            if size is not None and (type(size) is not int or not 1 <= size <= largest):
                raise ValueError(f"{name} must be a whole number from 1 to {largest}, got {size!r:.80}")
    if code := content.keys() & NOT_OF_CLIP:
        raise ValueError(f"config.json has {some(sorted(code))}, which can fetch code")
    for part in content.values():
        if isinstance(part, dict):
            check_sizes(part)


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a plain file of at most `max_bytes`.

    Raises:
        ValueError: something else is in it; the file is named.
        OSError: there is none.
    """
    check_plain_file(path, max_bytes)
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} holds no JSON object: {whole_message(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)} holds no JSON object, but a {type(content).__name__}")
    return content
