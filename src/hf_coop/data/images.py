"""Anything that stands for an image, to RGB."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def load_image(image: Any) -> Image.Image:
    """An RGB PIL image, upright, from a PIL image, a path, or an array.

    Args:
        image: a `PIL.Image`, a path, or an array or tensor `(H, W)`, `(H, W, 1 | 3 | 4)` of bytes, or of floats from
            0 to 1.

    Raises:
        TypeError: it is none of these.
        ValueError: the file cannot be read as an image, or the array has another shape or range.
    """
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as opened:
                return _from_pil(opened)
        except Exception as error:  # Pillow's decoders raise about anything
            raise ValueError(f"cannot read {os.fspath(image)!r} as an image: {error}") from error
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if hasattr(image, "__array__"):
        return _from_array(np.asarray(image))
    raise TypeError(f"not an image: {image!r:.80} of type {type(image).__name__}; give a PIL image, path or array")


def _from_pil(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16-bit tones at 255, not scale them
        return _from_array(np.asarray(upright) / 65535)
    return upright.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise ValueError(f"an image array has shape (H, W) or (H, W, 1 | 3 | 4), got {array.shape}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"an image array holds bytes or floats, got {array.dtype}")
    if array.dtype.kind in "bf":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("an image array of floats has values from 0 to 1")
        array = (array * 255).round()
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"an image array has values from 0 to 255, got {array.min()} to {array.max()}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(array.astype(np.uint8)).convert("RGB")


def load_images(images: Sequence[Any], first: int = 0) -> list[Image.Image]:
    """`load_image` on each; an error says which one, counting from `first`."""
    loaded = []
    for number, image in enumerate(images, start=first):
        try:
            loaded.append(load_image(image))
        except (TypeError, ValueError) as error:
            raise type(error)(f"image {number}: {error}") from error
    return loaded
