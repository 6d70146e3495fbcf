"""Image files to predictions: what `hf-coop predict` does."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.image_files import is_image_name
from ..data.images import convert_image, is_url
from ..data.pixels import fit_image

if TYPE_CHECKING:
    from ..modeling import HFCoOp
    from .onnx_classifier import OnnxClassifier

Result = list[dict[str, Any]] | ValueError  # what `HFCoOp.predict` gives for one image, or why it cannot


def find_images(places: Sequence[str | os.PathLike[str]]) -> list[Path | str]:
    """The image files that files, folders (searched throughout) and globs name, each once, in their order.

    URLs stay as they are; other places may begin with `~`. A file that is named itself is taken whatever its name.

    Raises:
        FileNotFoundError: something does not exist, or names no image.
        ValueError: a place is empty.
    """
    found: dict[Path | str, None] = {}
    for place in places:
        if is_url(place):
            found[str(place)] = None
            continue
        if not os.fspath(place).strip():
            raise ValueError(f"{os.fspath(place)!r} is no place of images: give a file, a folder, a pattern or a URL")
        path = Path(place).expanduser()
        if path.is_dir():
            images = [file for file in sorted(path.rglob("*")) if is_image_name(file) and file.is_file()]
        elif path.is_file():
            images = [path]
        else:
            images = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match))
        if not images:
            what = "no images in folder" if path.is_dir() else "no such file, folder or match of a pattern:"
            raise FileNotFoundError(f"{what} {os.fspath(place)!r}")
        found |= dict.fromkeys(images)
    return list(found)


def classify_files(
    model: HFCoOp | OnnxClassifier, paths: Sequence[Path | str], top_k: int = 5, batch_size: int = 64, **options: Any
) -> Iterator[tuple[Path | str, Result]]:
    """Each file with its predictions (as `HFCoOp.predict` gives them), or with the error where it cannot be read.

    Args:
        model ([`HFCoOp`] or [`OnnxClassifier`]), top_k (`int`), batch_size (`int`): as in `HFCoOp.predict`.
        paths (`Sequence[Path | str]`): image files and URLs.
        options: further ones of `HFCoOp.predict`, such as `min_score`.

    Raises:
        TypeError, ValueError: an option is wrong.
    """
    model.predict([], top_k, batch_size, **options)  # refuses bad options before a file is read
    for start in range(0, len(paths), batch_size):
        results: dict[Path | str, Any] = {}
        fitted: dict[Path | str, Any] = {}
        for path in paths[start : start + batch_size]:
            try:
                fitted[path] = convert_image(path, partial(fit_image, model.image_processor))
            except ValueError as error:
                results[path] = error
        if fitted:
            results |= zip(fitted, model.predict_fitted(list(fitted.values()), top_k, **options), strict=True)
        for path in paths[start : start + batch_size]:
            yield path, results[path]
