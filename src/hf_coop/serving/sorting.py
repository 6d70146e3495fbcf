"""`PhotoSorter`: image files into one folder a class, as predicted."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.images import is_url
from ..escaping import file_name
from ..files import naming_place

NO_CLASS = "none of these"  # the folder of images that no class was good enough for


class PhotoSorter:
    """Puts image files into one folder a class below `folder`; nothing there is overwritten.

    Args:
        folder: made if needed.
        classnames (`Iterable[str]`): all that may be predicted. What no file system takes in a name becomes "_", and
            classes whose folders would have one name get numbers.
        move (`bool`): move the files instead of copying them.

    Raises:
        NotADirectoryError: `folder` is a file.
    """

    def __init__(self, folder: str | os.PathLike[str], classnames: Iterable[str], move: bool = False) -> None:
        self.folder, self.move = Path(folder), move
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"cannot sort into {str(folder)!r}: it is a file, not a folder")
        self.names: dict[str, str] = {}
        taken = {NO_CLASS.casefold()}
        for label in dict.fromkeys(classnames):
            self.names[label] = _free_name(file_name(label), lambda name: name.casefold() in taken)
            taken.add(self.names[label].casefold())

    def sort(self, path: str | os.PathLike[str], predictions: Sequence[dict[str, Any]]) -> Path:
        """Put a file into the folder of its first prediction; gives where it is then.

        A file of the same name there gets company under another name, unless it is the same file or holds the same.

        Args:
            path: of the image.
            predictions: as `HFCoOp.predict` gives them; empty where no class is good enough.

        Raises:
            OSError: it cannot be written.
        """
        source = Path(path)
        target = self.folder / (self.names[predictions[0]["label"]] if predictions else NO_CLASS)
        with naming_place(target):
            return self._sort(source, target)

    def _sort(self, source: Path, target: Path) -> Path:
        target.mkdir(parents=True, exist_ok=True)
        place = target / _free_name(source.name, lambda name: _holds_another(target / name, source))
        if place.exists():
            if self.move and not place.samefile(source):
                source.unlink()
            return place
        staging = target / ".part"  # so that no half of a photo is ever seen under its name
        try:
            shutil.copy2(source, staging)
            os.replace(staging, place)
        finally:
            staging.unlink(missing_ok=True)
        if self.move:
            source.unlink()
        return place


def check_sortable(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Raise `ValueError` where a path is a URL, which is no file to copy or move."""
    if url := next((path for path in paths if is_url(path)), None):
        raise ValueError(f"{str(url)[:200]!r} is no file that could be sorted: download it first")


def _holds_another(place: Path, source: Path) -> bool:
    return place.exists() and not (place.samefile(source) or filecmp.cmp(place, source, shallow=False))


def _free_name(name: str, is_taken: Callable[[str], bool]) -> str:
    """`name`, or with the first number behind it that makes it free."""
    stem, suffix = os.path.splitext(name)
    number, free = 1, name
    while is_taken(free):
        number += 1
        free = f"{stem}-{number}{suffix}"
    return free
