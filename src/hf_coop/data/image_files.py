"""Image files: which there are, and opening one without trust in it."""

from __future__ import annotations

import os
from functools import cache
from pathlib import PurePath
from typing import Any

from PIL import Image, UnidentifiedImageError

# Still images. Pillow opens more: films, fonts of scientific data, and EPS, for which it runs Ghostscript on the file.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "HEIF", "JPEG2000", "PPM", "ICO", "ICNS", "PSD"),
    *("QOI", "DDS", "PCX", "SGI", "TGA"),
)
HEIF_EXTENSIONS = (".heic", ".heif", ".hif")  # of phones; pillow-heif reads them
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
NEEDS_PILLOW_HEIF = "pillow-heif reads HEIC images: pip install pillow-heif"
MAX_DECODED_BYTES = 384 * 2**20
BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1}  # of Pillow's modes in memory; those of I;16… take 2, all others 4
CODEC_COPIES = {"WEBP": 4, "AVIF": 3, "HEIF": 2, "JPEG2000": 4}  # of it that are held while it is decoded
JPEG_DIVISORS = (2, 4, 8)  # at which a JPEG can be decoded smaller


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads; HEIF where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()  # finds all plugins
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_extensions() -> frozenset[str]:
    """The endings of image files' names, in lower case."""
    registered = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
    return frozenset({*registered, *HEIF_EXTENSIONS, ".mpo"})


def is_image_name(path: PurePath) -> bool:
    """Whether a file is an image by its name, and not hidden."""
    return path.suffix.lower() in image_extensions() and not path.name.startswith(".")


def open_image_file(file: Any) -> Image.Image:
    """The first image of a file, its pixels read; a JPEG that is too large is read at half its size or less.

    Args:
        file: its path, or opened.

    Raises:
        ValueError: it would take more than `MAX_DECODED_BYTES` in memory, or needs pillow-heif.
        Exception: Pillow's decoders raise about anything.
    """
    try:
        image = Image.open(file, formats=readable_formats())
    except UnidentifiedImageError:
        if _is_heif(file):
            raise ValueError(NEEDS_PILLOW_HEIF) from None
        raise
    width, height = image.size
    bytes_per_pixel = 2 if image.mode.startswith("I;16") else BYTES_PER_PIXEL.get(image.mode, 4)
    most = MAX_DECODED_BYTES // (bytes_per_pixel * CODEC_COPIES.get(image.format or "", 1))
    if width * height > most:
        smaller = next((n for n in JPEG_DIVISORS if width // n * (height // n) <= most), 1)
        image.draft(None, (width // smaller, height // smaller))  # does nothing to other formats
    if image.width * image.height > most:
        image.close()
        raise ValueError(
            f"its {width} x {height} pixels are too many: {most // 10**6} megapixels are read of this kind of image, "
            f"which take {MAX_DECODED_BYTES // 2**20} MiB; give a smaller copy"
        )
    image.load()
    return image


def _is_heif(file: Any) -> bool:
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return _is_heif(opened)
    file.seek(0)
    head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS
