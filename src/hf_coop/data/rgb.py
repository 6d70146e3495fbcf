"""Image data of any kind as a viewer shows it: upright, in RGB, and on white where it is transparent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

TURN_UPRIGHT = {  # by EXIF orientation; from the fifth on, rows become columns
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS, BACKWARDS = (5, 6, 7, 8), (3, 4, 7, 8)  # whose first row is a stored column; the last row or column
STRIP_PIXELS = 2**20


def to_rgb(image: Image.Image) -> Image.Image:
    """The whole image, upright, in RGB, on white where it is transparent.

    Raises:
        ValueError: nothing says how bright its pixels are, or Pillow cannot convert its mode.
    """
    whole = Image.new("RGB", upright_size(image))
    for top, strip in rgb_strips(image, range(whole.height), whole.width):
        whole.paste(strip, (0, top))
    return whole


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the image as it is shown."""
    width, height = image.size
    return (height, width) if _orientation(image) in SIDEWAYS else (width, height)


def rgb_strips(image: Image.Image, rows: range, width: int) -> Iterator[tuple[int, Image.Image]]:
    """Rows of the image as it is shown, a few at a time, so that the whole never exists a second time.

    Args:
        image (`PIL.Image`): of any mode, its pixels read.
        rows (`range`): of the upright image.
        width (`int`): pixels that the caller makes of a row.

    Yields:
        The first row's number with an RGB image of the full width.
    """
    white = _white(image)
    turn, step = _orientation(image), max(1, STRIP_PIXELS // max(width, 1))
    for top in range(rows.start, rows.stop, step):
        first, last = top, min(top + step, rows.stop)
        if turn in BACKWARDS:
            length = image.width if turn in SIDEWAYS else image.height
            first, last = length - last, length - first
        box = (first, 0, last, image.height) if turn in SIDEWAYS else (0, first, image.width, last)
        strip = image.crop(box)
        yield top, _opaque(strip.transpose(TURN_UPRIGHT[turn]) if turn in TURN_UPRIGHT else strip, white)


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _white(image: Image.Image) -> int | None:
    """The value of white in an image whose pixels are single numbers of more than 8 bits; None for all others."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 65535  # where Pillow's own conversion would clip at 255
    if image.mode not in ("I", "F"):
        return None
    white, kind = (255, "32-bit whole numbers") if image.mode == "I" else (1, "floating-point numbers")
    low, high = image.getextrema()
    if not 0 <= low <= high <= white:
        raise ValueError(
            f"its pixels are {kind} from {low:g} to {high:g}, and nothing says which of them is white: give numbers "
            f"from 0 to {white}"
        )
    return white


def _opaque(image: Image.Image, white: int | None) -> Image.Image:
    """An upright image of any mode in RGB."""
    if white is not None:
        return array_to_rgb(np.asarray(image) / white)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def array_to_rgb(array: np.ndarray) -> Image.Image:
    """An RGB image of an array `(H, W)` or `(H, W, 1 | 3 | 4)` of whole numbers from 0 to 255 or floats from 0 to 1.

    Raises:
        ValueError: it has another shape, type or range.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ValueError(f"an image array has shape (H, W) or (H, W, 1 | 3 | 4), channels last, got {array.shape}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"an image array holds bytes or floats, got {array.dtype}")
    if array.dtype.kind in "bf":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                "an image array of floats has values from 0 to 1; what an image processor gives goes to "
                "model(pixel_values=…)"
            )
        array = (array * 255).round()
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"an image array has values from 0 to 255, got {array.min()} to {array.max()}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _opaque(Image.fromarray(array.astype(np.uint8)), None)
