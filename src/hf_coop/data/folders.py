"""Labelled images from folders: one sub-folder a class."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import some
from .archives import unpacked_folder
from .image_files import is_image_name

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}


def load_image_folder(folder: str | os.PathLike[str]) -> Dataset:
    """Images in one sub-folder a class, classes in the order of the folders' names.

    The `imagefolder` loader of `datasets` is not used, because it takes class folders called "train" or "test" for
    splits, and skips empty ones.

    Args:
        folder: its path, which may begin with `~`; or a zip or tar archive of it, which is unpacked into the cache of
            `datasets`.

    Raises:
        ValueError: no folder, no images, images outside the class folders only, or a class folder without images.
    """
    from datasets import ClassLabel, Dataset, Features, Image
    from datasets.fingerprint import Hasher

    root = Path(folder).expanduser()
    if root.is_file():
        root = unpacked_folder(root)
    if not root.is_dir():
        raise ValueError(f"no such folder: {str(folder)!r}")
    images = _images_by_class(root)
    files = [path for paths in images.values() for path in paths]
    labels = [label for label, paths in enumerate(images.values()) for _ in paths]
    state = list(map(file_state, files))  # the fingerprint tells a changed file
    dataset = Dataset.from_dict({"image": [str(path) for path in files]}, features=Features({"image": Image()}))
    label_type = ClassLabel(names=list(images))
    return dataset.add_column("label", labels, feature=label_type, new_fingerprint=Hasher.hash([state, labels]))


def _images_by_class(root: Path) -> dict[str, list[Path]]:
    """The image files below each class folder. A link that leads nowhere is one too, for it cannot be read."""
    class_dirs = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if class_dirs and {path.name for path in class_dirs} <= SPLIT_NAMES:
        names = some(path.name for path in class_dirs)
        raise ValueError(f"{str(root)!r} holds splits ({names}), not classes: give the folder of one of them")
    images: dict[str, list[Path]] = {}
    others: list[Path] = []
    above = {path.resolve() for path in (root, *class_dirs)} | set(root.resolve().parents)
    for folder in class_dirs:
        visible = [path for path in _files_below(folder, above) if not path.name.startswith(".")]
        images[folder.name] = [path for path in visible if is_image_name(path)]
        others += [path for path in visible if not is_image_name(path)]
    left_out = f"; these are no images by their names: {some(others)}" if others else ""
    if not any(images.values()):
        raise ValueError(f"no images in {str(root)!r}: it must hold one sub-folder of images for each class{left_out}")
    if empty := [name for name, files in images.items() if not files]:
        raise ValueError(f"class folders without any image in {str(root)!r}: {some(empty)}{left_out}")
    if others:
        logger.warning("%d files in %r are left out%s", len(others), str(root), left_out)
    return images


def _files_below(folder: Path, seen: set[Path]) -> list[Path]:
    """All files below, through links too, but not through those that lead to `seen` or where it has been."""
    seen = {*seen}
    files: list[Path] = []
    for top, folders, names in os.walk(folder, followlinks=True):
        files += [Path(top, name) for name in names]
        new = {name: real for name in folders if (real := Path(top, name).resolve()) not in seen}
        folders[:] = new
        seen |= {*new.values()}
    return sorted(files)


def file_state(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """What changes when a file does: where it is, its size, and when it was written (0 where there is none)."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path), 0, 0
    return os.path.realpath(path), found.st_size, found.st_mtime_ns


def same_files(files: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of `others` whose content one of `files` has too; what cannot be read is like nothing."""
    by_size: dict[int, list[str]] = {}
    for path in files:
        by_size.setdefault(file_state(path)[1], []).append(path)

    @cache
    def digest(path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return os.fsencode(path)

    sized = [(path, by_size.get(size, [])) for path in others if (size := file_state(path)[1])]
    return [path for path, alike in sized if any(digest(path) == digest(other) for other in alike)]
