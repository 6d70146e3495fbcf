"""Images that strangers upload: read with limits, from their bytes alone."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from ..data.image_files import is_image_name
from ..data.images import load_image

if TYPE_CHECKING:
    from datasets import Dataset

MAX_IMAGE_BYTES, MAX_PIXELS = 16 * 2**20, 40_000_000  # of one image
MAX_RATIO = 50  # of its sides: resized to the tower's size, a longer image would be huge
MAX_ARCHIVE_BYTES = 512 * 2**20  # of all images in it
MAX_ARCHIVE_FILES = 5_000
MAX_CLASSES = 200
TRAINING_SIDE = 512  # pixels; larger images are made smaller before they are kept


def read_upload(file: str | os.PathLike[str] | bytes) -> Image.Image:
    """An RGB image from an uploaded file or its bytes.

    Raises:
        ValueError: it is no image, or too large; the message does not repeat its path.
    """
    size = len(file) if isinstance(file, bytes) else os.path.getsize(file)
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"the file has {size / 2**20:.0f} MiB; {MAX_IMAGE_BYTES // 2**20} are allowed")
    try:
        content = file if isinstance(file, bytes) else _read(file)
        with Image.open(io.BytesIO(content)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(
                    f"the image has {opened.width} x {opened.height} pixels; {MAX_PIXELS // 10**6} million are allowed"
                )
            if max(opened.size) > MAX_RATIO * min(opened.size):
                raise ValueError(f"the image has {opened.width} x {opened.height} pixels, which is no picture: cut it")
        return load_image(content)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError("this is not an image that can be read") from error


def _read(file: str | os.PathLike[str]) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()


def read_archive(file: str | os.PathLike[str] | IO[bytes]) -> Dataset:
    """The labelled images of a `.zip` of a folder with one sub-folder of images a class; nothing is unpacked.

    Returns:
        A `Dataset` with `image` and `label`, classes in the order of their names.

    Raises:
        ValueError: it is no such archive, or too large; an image that cannot be read is named.
    """
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    images: dict[str, list[dict[str, Any]]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for classname, name, content in _entries(archive):
                images.setdefault(classname, []).append(_kept(name, content))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError("this is not a .zip file that can be read") from error
    if len(images) < 2:
        raise ValueError(
            f"the .zip holds images of {len(images)} classes: it must hold one sub-folder of images for each of two "
            "classes or more"
        )
    if len(images) > MAX_CLASSES:
        raise ValueError(f"the .zip holds {len(images)} classes; {MAX_CLASSES} are allowed")
    names = sorted(images)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    rows = {
        "image": [image for name in names for image in images[name]],
        "label": [label for label, name in enumerate(names) for _ in images[name]],
    }
    return Dataset.from_dict(rows, features=features)


def _entries(archive: zipfile.ZipFile) -> Iterator[tuple[str, str, bytes]]:
    """Class name, name and content of each image; what an entry says of its size is not believed."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MAX_ARCHIVE_FILES:
        raise ValueError(f"the .zip holds {len(entries)} files; {MAX_ARCHIVE_FILES} are allowed")
    total = 0
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        *_, folder, name = ("", "", *path.parts)
        if folder in ("", "/", "..") or "__MACOSX" in path.parts or not is_image_name(path):
            continue
        with archive.open(entry) as opened:
            content = opened.read(MAX_IMAGE_BYTES + 1)
        total += len(content)
        if total > MAX_ARCHIVE_BYTES:
            raise ValueError(f"the images in the .zip have more than {MAX_ARCHIVE_BYTES // 2**20} MiB")
        yield folder, f"{folder}/{name}", content


def _kept(name: str, content: bytes) -> dict[str, Any]:
    """An image as `datasets` stores it: a PNG of at most `TRAINING_SIDE` pixels a side."""
    try:
        image = read_upload(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    image.thumbnail((TRAINING_SIDE, TRAINING_SIDE))
    kept = io.BytesIO()
    image.save(kept, "PNG", compress_level=1)
    return {"bytes": kept.getvalue(), "path": None}
