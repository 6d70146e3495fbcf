"""Data sets like those of `clip-benchmark`: images in tar files, with the class names in a text file beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .classnames import class_label, read_classnames

if TYPE_CHECKING:
    from datasets import DatasetDict

CLASSNAMES_FILE = "classnames.txt"
TAR_FILES = "*/*.tar"  # the folder is the split


def webdataset_folder(name: str | os.PathLike[str], token: str | bool | None = None) -> Path | None:
    """The folder of a data set in this form, fetched from the Hub where it is not here; None for any other data set.

    It holds `train/0.tar`, …, `test/0.tar`, … and `classnames.txt`, one name a line in label order.

    Args:
        name: a folder, or a Hub data set whose name begins with "wds_", as all of `clip-benchmark` do.
        token: of the Hub.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    folder = Path(name)
    if folder.is_dir():
        return folder if (folder / CLASSNAMES_FILE).is_file() and any(folder.glob(TAR_FILES)) else None
    if not folder.name.startswith("wds_"):
        return None
    try:
        hf_hub_download(os.fspath(name), CLASSNAMES_FILE, repo_type="dataset", token=token)
    except EntryNotFoundError:
        return None
    patterns = [CLASSNAMES_FILE, TAR_FILES]
    return Path(snapshot_download(os.fspath(name), repo_type="dataset", allow_patterns=patterns, token=token))


def load_webdataset(folder: Path) -> DatasetDict:
    """Its splits with the columns `image` and `label`, under the names of `classnames.txt`.

    Raises:
        ValueError: the names cannot be read, or the images have no class (`cls`).
    """
    from datasets import Image, load_dataset

    tars: dict[str, list[str]] = {}
    for tar in sorted(folder.glob(TAR_FILES)):
        tars.setdefault(tar.parent.name, []).append(str(tar))
    names = read_classnames(folder / CLASSNAMES_FILE)
    splits = load_dataset("webdataset", data_files=tars)
    features = next(iter(splits.values())).features
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    if len(images) != 1 or "cls" not in features:
        raise ValueError(f"each sample must have one image and its class ('cls'); it has {', '.join(features)}")
    for split in splits.values():
        if strange := {*split["cls"][:]} - {*range(len(names))}:
            raise ValueError(f"{CLASSNAMES_FILE} has {len(names)} names, but an image has the label {min(strange)}")
    return splits.rename_columns({images[0]: "image", "cls": "label"}).cast_column("label", class_label(names))
