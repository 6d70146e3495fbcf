"""The images in a data set's column `image`: read, and looked through for broken ones."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image as PILImage

from ..errors import some
from .images import read_image
from .rgb import to_rgb

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
T = TypeVar("T")


def read_images(dataset: Dataset, rows: Sequence[int]) -> list[PILImage.Image]:
    """The images of some rows, in RGB.

    Raises:
        ValueError: one cannot be read; its path, or its row where it has none, is named.
    """
    cells = encoded_images(dataset)[list(rows)]["image"]
    return [decode_image(cell, row) for cell, row in zip(cells, rows, strict=True)]


def encoded_images(dataset: Dataset) -> Dataset:
    """The column `image` alone, each as `{"bytes", "path"}`, not yet decoded."""
    from datasets import Image

    return dataset.select_columns("image").cast_column("image", Image(decode=False))


def decode_image(cell: Mapping[str, Any] | None, row: int, convert: Callable[[PILImage.Image], T] = to_rgb) -> T:
    """One of [`encoded_images`], in RGB, or what `convert` makes of it as it was stored.

    Raises:
        ValueError: it cannot be read; its path, or `row` where it has none, is named.
    """
    where = repr(cell["path"]) if cell and cell["path"] else f"image {row}"
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise ValueError(f"{where} of the data set is missing")
    return read_image(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]), where, convert)


def broken_images(dataset: Dataset, first: int = 0) -> dict[int, str]:
    """Rows whose image cannot be read, each with the error that names it. Decodes every image once.

    Args:
        dataset (`datasets.Dataset`): with a column `image`.
        first (`int`): the number of the first image in the errors.
    """
    broken = {}
    for row, cell in enumerate(encoded_images(dataset)):
        try:
            decode_image(cell["image"], first + row)
        except ValueError as error:
            broken[row] = str(error)
    return broken


def check_images(dataset: Dataset, first: int = 0) -> None:
    """Raise `ValueError` where images cannot be read, with the first of them, how many there are, and what to do."""
    if broken := list(broken_images(dataset, first).values()):
        more = f"; so it is with {len(broken) - 1} more of {len(dataset)} images" if len(broken) > 1 else ""
        raise ValueError(
            f"{broken[0]}{more}. Mend them, or leave them out by skip_broken_images (--skip_broken_images)"
        )


def drop_broken_images(dataset: Dataset, name: str = "data") -> Dataset:
    """The data set without the images that cannot be read, which are counted in a warning."""
    broken = broken_images(dataset)
    if not broken:
        return dataset
    logger.warning("%d of %d %s images skipped: %s", len(broken), len(dataset), name, some(broken.values()))
    return dataset.select([row for row in range(len(dataset)) if row not in broken])
