"""`fit_image`: the pixels of CLIP's processor, whatever the size and mode of an image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PARITY
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

from hf_coop.data import pixels as module
from hf_coop.data import rgb
from hf_coop.data.pixels import fit_image, stack_pixels
from hf_coop.data.rgb import to_rgb

RNG = np.random.default_rng(0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def processor(**settings: Any) -> Any:
    return AutoImageProcessor.from_pretrained(PARITY, **settings)


def assert_same_pixels(processor: Any, image: Image.Image) -> None:
    expected = processor(images=[to_rgb(image)], return_tensors="pt").pixel_values
    assert torch.equal(stack_pixels(processor, [fit_image(processor, image)]), expected)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("shortest", [32, 33, 57])
def test_are_the_processor_s_bit_for_bit(shortest, resample, monkeypatch):
    monkeypatch.setattr(rgb, "STRIP_PIXELS", 5000)
    own = processor(size={"shortest_edge": shortest}, resample=resample)
    for size in [
        (32, 32),
        (33, 32),
        (200, 301),
        (301, 200),
        (5, 90),
        (90, 5),
        (1, 1),
        (700, 3),
        (1, 700),
        (1999, 1000),
    ]:
        assert_same_pixels(own, noise(*size))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [(1, 2000), (2, 999), (16, 3000), (3, 3000), (7, 999), (40, 5000), (33, 9999)])
def test_what_is_far_from_the_middle_of_a_long_image_is_not_read(size, turned, monkeypatch):
    own, image = processor(), noise(*(size[::-1] if turned else size))
    expected = np.asarray(fit_image(own, image)).astype(int)
    monkeypatch.setattr(module, "MAX_RESIZED", 64)
    difference = np.abs(np.asarray(fit_image(own, image)) - expected)
    assert difference.max() <= (0 if 32 % size[0] == 0 else 1)
    assert (difference > 0).mean() < 0.001


def test_a_line_of_pixels_has_those_of_the_processor():
    for size in [(10_000, 1), (1, 10_000), (5_000, 2)]:
        assert_same_pixels(processor(), noise(*size))


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_of_turned_images_too(orientation, kind, monkeypatch):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    noise(61, 40).save(file, kind, exif=exif)
    stored = Image.open(file)
    stored.load()
    upright = ImageOps.exif_transpose(stored).convert("RGB")
    for strip in (2**20, 200):
        monkeypatch.setattr(rgb, "STRIP_PIXELS", strip)
        assert np.array_equal(np.asarray(to_rgb(stored)), np.asarray(upright))
        assert np.array_equal(np.asarray(fit_image(processor(), stored)), np.asarray(fit_image(processor(), upright)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_of_any_mode(mode):
    image = noise(90, 61)
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    assert_same_pixels(processor(), image)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 40, "width": 50}},
        {"do_center_crop": False, "size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 20}},  # the crop adds a border
        {"do_resize": False},
    ],
)
def test_processors_that_work_in_another_way_are_called(settings):
    own, images = processor(**settings), [noise(61, 47), noise(40, 90)]
    expected = own(images=images, return_tensors="pt").pixel_values
    assert torch.equal(stack_pixels(own, [fit_image(own, image) for image in images]), expected)


def test_a_line_is_no_picture():
    with pytest.raises(
        ValueError, match=r"its 1 x 40001 pixels are no picture: one side may be 40,000 times the other"
    ):
        fit_image(processor(), Image.new("L", (1, 40_001)))
    assert fit_image(processor(), Image.new("L", (40_000, 1))).size == (32, 32)
