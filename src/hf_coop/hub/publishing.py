"""Adapters pushed to the Hub, in one commit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from ..errors import root_message
from ..pretrained import check_revision
from .adapter_files import ADAPTER_FILES, CARD_FILE, CONFIG_FILE, fetch_adapter, read_adapter_config

REPO_PLACEHOLDER = "your-name/your-adapter"  # stands in a saved card for the repository, which a push fills in


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
    of the repository. A folder that holds the folders of many adapters, such as the `prompts` of an experiment,
    becomes a repository with a sub-folder for each.

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
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        return api.create_commit(
            url.repo_id,
            [_addition(folder, name, url.repo_id) for name in files],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # the client raises errors of many kinds
        raise OSError(
            f"cannot push to {repo_id!r}: {root_message(error)}. Nothing was committed, and local files are as they "
            "were: check the connection and that your token may write there (hf auth login), then push again"
        ) from error


def files_to_push(folder: Path) -> list[str]:
    """The files of an adapter's folder, or its card and those of all adapters below it, relative to `folder`."""
    if (folder / CONFIG_FILE).exists():
        return list(ADAPTER_FILES)
    below = [path.parent.relative_to(folder) for path in sorted(folder.rglob(CONFIG_FILE))]
    finished = [place for place in below if not any(part.startswith("checkpoint-") for part in place.parts)]
    return [CARD_FILE, *(os.path.join(place, name) for place in finished for name in ADAPTER_FILES)]


def _addition(folder: str | os.PathLike[str], name: str, repo_id: str) -> CommitOperationAdd:
    content, path = Path(folder, name).read_bytes(), name.replace(os.sep, "/")
    place, _, file = path.rpartition("/")
    if file == CARD_FILE:
        if place:
            there = f'"{repo_id}", subfolder="{place}"'
            content = content.replace(f'"{REPO_PLACEHOLDER}"'.encode(), there.encode())
        content = content.replace(REPO_PLACEHOLDER.encode(), repo_id.encode())
    return CommitOperationAdd(path, content)
