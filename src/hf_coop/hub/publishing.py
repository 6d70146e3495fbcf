"""Adapters pushed to the Hub, in one commit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..errors import root_message, whole_message
from ..evaluation.card_figures import FIGURE_FILES
from ..pretrained import check_revision
from .adapter_files import ADAPTER_FILES, CARD_FILE, CONFIG_FILE, fetch_adapter, read_adapter_config
from .card_file import for_repository, without_figures
from .model_card import CardDetails


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    files: Sequence[str] | None = None,
    *,
    commit_message: str = "Upload prompt with hf-coop",
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Push an adapter's files to the Hub in one commit; where nothing has changed, none is made.

    The folder is first checked as loading does, and is only read. The card's `your-name/your-adapter` becomes the name
    of the repository; text that somebody wrote into the card on the Hub stays, unless the folder's has some too. A
    folder that holds the folders of many adapters, such as the `prompts` of an experiment, becomes a repository with a
    sub-folder for each.

    Args:
        folder: of `save_pretrained`, or one that holds such folders.
        repo_id (`str`): `user/name`; made if needed.
        files (`Sequence[str]`, *optional*): what to push, relative to `folder`; those that are missing are left out.
            Default: the files of its adapter, or of all adapters below it.
        commit_message, commit_description, private, token, revision, create_pr: as in
            `transformers.PreTrainedModel.push_to_hub`. `revision` is a branch, made if needed.

    Raises:
        ValueError: the folder holds no sound adapter.
        OSError: the upload failed; nothing of it is on the Hub.
    """
    check_revision(revision)
    files = [name for name in files or files_to_push(Path(folder)) if os.path.isfile(os.path.join(folder, name))]
    configs = [name for name in files if os.path.basename(name) == CONFIG_FILE] or [CONFIG_FILE]
    for name in configs:
        config = read_adapter_config(fetch_adapter(folder, os.path.dirname(name)))
    if os.path.isdir(base := config.base_model_name_or_path or ""):
        warnings.warn(
            f"the base model {base!r} is a folder of this machine: others must pass base_model_name_or_path to load "
            "the prompt",
            stacklevel=2,
        )
    api = HfApi(token=token)
    with _naming_repository(repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        return api.create_commit(
            url.repo_id,
            [_addition(folder, name, url.repo_id, api, revision) for name in files],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def push_file(
    path: str | os.PathLike[str], repo_id: str, *, token: str | bool | None = None, revision: str | None = None
) -> CommitInfo:
    """Push one file, such as an exported model, to the top of a repository that is there.

    Args:
        path: of the file.
        repo_id (`str`): `user/name`.
        token, revision: as in [`push_folder`].

    Raises:
        OSError: the upload failed; nothing of it is on the Hub.
    """
    addition = CommitOperationAdd(os.path.basename(path), os.fspath(path))
    with _naming_repository(repo_id):
        return HfApi(token=token).create_commit(
            repo_id, [addition], commit_message=f"Upload {addition.path_in_repo} with hf-coop", revision=revision
        )


@contextmanager
def _naming_repository(repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the client raises errors of many kinds
        raise OSError(
            f"cannot push to {repo_id!r}: {root_message(error)}. Nothing was committed, and local files are as they "
            "were: check the connection and that your token may write there (hf auth login), then push again"
        ) from error


def files_to_push(folder: Path) -> list[str]:
    """The files of an adapter's folder, or its card and those of all adapters below it, relative to `folder`."""
    if (folder / CONFIG_FILE).exists():
        return _adapter_files(folder)
    below = [path.parent.relative_to(folder) for path in sorted(folder.rglob(CONFIG_FILE))]
    finished = [place for place in below if not any(part.startswith("checkpoint-") for part in place.parts)]
    return [CARD_FILE, *(os.path.join(place, name) for place in finished for name in _adapter_files(folder / place))]


def _adapter_files(folder: Path) -> list[str]:
    """The files of one adapter; figures that its card does not have are of a prompt that was saved there before."""
    has_figures = CardDetails.from_card(folder / CARD_FILE).figures is not None
    return [name for name in ADAPTER_FILES if has_figures or name not in FIGURE_FILES]


def check_push(repo_id: str, token: str | bool | None = None) -> None:
    """Raise now what would only come out at the push, after long work. Nothing is made on the Hub.

    Args:
        repo_id (`str`): `user/name`, or `name` for the user's own.
        token: default: the one of `hf auth login`.

    Raises:
        ValueError: it can be no name of a repository.
        OSError: the Hub cannot be reached, or the token may not write there.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} can be no repository to push to: {error}") from error
    try:
        user = HfApi(token=token).whoami()
    except Exception as error:  # the client raises errors of many kinds
        raise OSError(
            f"cannot push to {repo_id!r}: {whole_message(error)}. Log in (hf auth login) or pass a token, or leave "
            "push_to_hub out and push the saved prompt later (hf-coop push)"
        ) from error
    owner = repo_id.split("/")[0] if "/" in repo_id else user["name"]
    owners = [user["name"], *(group["name"] for group in user.get("orgs", ()))]
    if owner not in owners:
        raise OSError(f"cannot push to {repo_id!r}: the token is of {', '.join(owners)}; choose a name of theirs")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise OSError(f"cannot push to {repo_id!r}: the token may only read; log in with one that may write")


def _addition(
    folder: str | os.PathLike[str], name: str, repo_id: str, api: HfApi, revision: str | None
) -> CommitOperationAdd:
    """A file as it is to lie in the repository; a card with what people wrote into the one that is there."""
    path = name.replace(os.sep, "/")
    place, _, file = path.rpartition("/")
    if file != CARD_FILE:
        return CommitOperationAdd(path, Path(folder, name).read_bytes())
    try:
        on_hub = Path(api.hf_hub_download(repo_id, path, revision=revision)).read_text(encoding="utf-8")
    except RemoteEntryNotFoundError:
        on_hub = None
    local = Path(folder, name).read_text(encoding="utf-8")
    if CardDetails.from_card(Path(folder, name)).figures is None:
        local = without_figures(local)
    return CommitOperationAdd(path, for_repository(local, repo_id, on_hub, subfolder=place).encode())
