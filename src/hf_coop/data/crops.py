"""The published training augmentation on PIL images: random resized crop and horizontal flip."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

CROP_SCALE = (0.08, 1.0)  # of the image's area
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10


def random_view(image: Image.Image, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """A random crop of 8 % to 100 % of the area, resized by bicubic interpolation, flipped with probability 1/2.

    Draws as torchvision's `RandomResizedCrop` does: area uniform in `CROP_SCALE`, aspect ratio log-uniform in
    `CROP_RATIO`; after ten crops that do not fit, the largest centred one.

    Args:
        image (`PIL.Image`): the whole image.
        height, width (`int`): of the result.
        rng (`numpy.random.Generator`): decides everything.
    """
    view = image.crop(_random_box(image.width, image.height, rng)).resize((width, height), Image.Resampling.BICUBIC)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    low, high = map(math.log, CROP_RATIO)
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * CROP_RATIO[1]))
    h = min(height, round(width / CROP_RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
