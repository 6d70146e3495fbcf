"""Image files to predictions: what `hf-coop predict` does."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..data.images import is_url, load_image

if TYPE_CHECKING:
    from ..modeling import HFCoOp


def find_images(places: Sequence[str | os.PathLike[str]]) -> list[Path | str]:
    """The image files that files, folders (searched throughout) and globs name, each once, in their order.

    URLs stay as they are.

    Raises:
        FileNotFoundError: something does not exist, or names no image.
    """
    found: dict[Path | str, None] = {}
    for place in places:
        if is_url(place):
            found[str(place)] = None
            continue
        path = Path(place)
        if path.is_dir():
            images = [file for file in sorted(path.rglob("*")) if _is_image(file)]
        elif path.is_file():
            images = [path]
        else:
            images = sorted(Path(match) for match in glob.glob(str(place), recursive=True) if os.path.isfile(match))
        if not images:
            what = "no images in folder" if path.is_dir() else "no such file, folder or match of a pattern:"
            raise FileNotFoundError(f"{what} {os.fspath(place)!r}")
        found |= dict.fromkeys(images)
    return list(found)


def _is_image(path: Path) -> bool:
    image_format = Image.registered_extensions().get(path.suffix.lower())
    return image_format in Image.OPEN and not path.name.startswith(".") and path.is_file()


def classify_files(
    model: HFCoOp, paths: Sequence[Path | str], top_k: int = 5, batch_size: int = 64
) -> Iterator[tuple[Path | str, list[dict[str, Any]] | ValueError]]:
    """Each file with its predictions (as `HFCoOp.predict` gives them), or with the error where it cannot be read.

    Args:
        model ([`HFCoOp`]), top_k (`int`), batch_size (`int`): as in `HFCoOp.predict`.
        paths (`Sequence[Path | str]`): image files and URLs.

    Raises:
        TypeError, ValueError: `top_k` or `batch_size` is no whole number from 1.
    """
    model.predict([], top_k, batch_size)  # refuses bad options before a file is read
    for start in range(0, len(paths), batch_size):
        results: dict[Path | str, Any] = {}
        images: dict[Path | str, Image.Image] = {}
        for path in paths[start : start + batch_size]:
            try:
                images[path] = load_image(path)
            except ValueError as error:
                results[path] = error
        if images:
            results |= zip(images, model.predict(list(images.values()), top_k, batch_size), strict=True)
        for path in paths[start : start + batch_size]:
            yield path, results[path]
