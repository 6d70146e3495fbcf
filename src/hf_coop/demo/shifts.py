"""Shifted versions of the embedded digits: the other image sets that a prompt learned on the digits is tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

NOISE_STD = 80.0  # of 255


def inverted(image: Image.Image, row: int) -> Image.Image:
    return image.point(lambda value: 255 - value)


def noisy(image: Image.Image, row: int) -> Image.Image:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng([0, row]).normal(0, NOISE_STD, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.rint(np.asarray(image) + noise), 0, 255).astype(np.uint8))


def rotated(image: Image.Image, row: int) -> Image.Image:
    from PIL import Image

    return image.rotate(45, Image.Resampling.BICUBIC)


def faint(image: Image.Image, row: int) -> Image.Image:
    return image.point(lambda value: round(0.25 * value))


#: By name: an image and its row to the shifted image.
SHIFTS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    shift.__name__: shift for shift in (inverted, noisy, rotated, faint)
}
