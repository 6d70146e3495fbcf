"""Images of any size to what the image tower takes, one at a time and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from .images import convert_image
from .rgb import rgb_strips, to_rgb, upright_size

if TYPE_CHECKING:
    import torch

CLIP_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")
MAX_RATIO = 40_000  # of the sides: JPEG files have at most 65,535 pixels a side
MAX_RESIZED = 2**16  # pixels of a side that are made where only the middle ones are kept
FILTER_REACH = 4  # source pixels on each side that a pixel is made of, at most, or of its own size


def fit_image(processor: Any, image: Image.Image) -> Image.Image | torch.Tensor:
    """An image as the tower takes it but for scale and mean: resized and cropped as the processor does, by Pillow.

    The pixels are those that CLIP's processor makes by Pillow (torchvision's differ by 1 of 255 here and there). They
    cost the memory of the image itself and a few strips of it. A processor of another kind is called as it is.

    Args:
        processor: an image processor of transformers.
        image (`PIL.Image`): of any mode, its pixels read.

    Raises:
        ValueError: one side is over 40,000 times as long as the other, or the mode has no colours.
    """
    width, height = upright_size(image)
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"its {width} x {height} pixels are no picture: one side may be {MAX_RATIO:,} times the other; cut it"
        )
    if not _resizes_then_crops(processor):
        return processor(images=to_rgb(image), return_tensors="pt").pixel_values[0]
    short, crop = processor.size["shortest_edge"], (processor.crop_size["width"], processor.crop_size["height"])
    long = int(short * max(width, height) / min(width, height))
    size = (short, long) if width <= height else (long, short)
    return _resized_centre(image, size, crop, Image.Resampling(processor.resample))


def stack_pixels(processor: Any, fitted: Sequence[Image.Image | torch.Tensor]) -> torch.Tensor:
    """What the tower takes, `(B, 3, H, W)`, of images from [`fit_image`]: with the processor's scale and mean."""
    import torch  # ONNX models are run without it

    if isinstance(fitted[0], torch.Tensor):
        return torch.stack(list(fitted))
    return crops_to_pixels(processor, fitted)


def crops_to_pixels(processor: Any, crops: Sequence[Image.Image]) -> torch.Tensor:
    """Crops `(B, 3, H, W)` as the tower takes them: the processor's scale and mean, without its resize and crop."""
    options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    pixels = processor(images=crops[0], **options).pixel_values.repeat(len(crops), 1, 1, 1)
    for number, crop in enumerate(crops[1:], start=1):  # one at a time, since the processor makes several copies
        pixels[number] = processor(images=crop, **options).pixel_values[0]
    return pixels


def fit_each(processor: Any, images: Iterable[Any]) -> Iterator[Image.Image | torch.Tensor]:
    """[`fit_image`] of anything that [`load_image`] takes, each read and made small before the next one.

    Raises:
        TypeError, ValueError: one is no image or cannot be read; its number is in the message.
    """
    for number, image in enumerate(images):
        try:
            fitted = convert_image(image, partial(fit_image, processor))
        except (TypeError, ValueError) as error:
            raise type(error)(f"image {number}: {error}") from error
        yield fitted


def _resizes_then_crops(processor: Any) -> bool:
    """Whether it works as CLIP's do: resizes by the shortest edge, then cuts out a centre that is no larger."""
    if type(processor).__name__ not in CLIP_PROCESSORS or not (processor.do_resize and processor.do_center_crop):
        return False
    shortest, crop = processor.size.get("shortest_edge"), processor.crop_size
    return bool(shortest and not processor.size.get("longest_edge") and max(crop["width"], crop["height"]) <= shortest)


class Axis(NamedTuple):
    """What a resize and a centre crop read along one side of an image.

    Args:
        source (`range`): the pixels that are read.
        box (`tuple[float, float]`): the part of them that is resized.
        target (`int`): pixels that it is resized to.
        start (`int`): the first of these that the crop keeps.
    """

    source: range
    box: tuple[float, float]
    target: int
    start: int

    @classmethod
    def of(cls, source: int, target: int, crop: int) -> Axis:
        """A side of `source` pixels, resized to `target`, of which the middle `crop` are kept.

        Of a side that becomes very long, only what is kept and the filter's reach around it are read. Where each pixel
        becomes a whole number of them, this changes nothing, else it shifts them by less than a millionth of a pixel.
        """
        start = (target - crop) // 2
        if target <= MAX_RESIZED:
            return cls(range(source), (0, source), target, start)
        scale = source / target
        first, last, reach = start * scale, (start + crop) * scale, math.ceil(FILTER_REACH * max(scale, 1))
        part = range(source)[max(0, math.floor(first) - reach) : math.ceil(last) + reach]
        if target % source == 0:
            factor = target // source
            return cls(part, (0, len(part)), len(part) * factor, start - part.start * factor)
        return cls(part, (first - part.start, last - part.start), crop, 0)


def _resized_centre(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """The centre `crop` of `to_rgb(image).resize(size, resample)`.

    Where both sides shrink alike, Pillow resizes each row first, and then each column of the result. So does this, but
    a few rows at a time, and without the columns that the crop cuts off.
    """
    width, height = crop
    columns, rows = map(Axis.of, upright_size(image), size, crop)
    narrow = Image.new("RGB", (width, len(rows.source)))
    for top, strip in rgb_strips(image, rows.source, max(columns.target, *image.size)):
        part = strip.crop((columns.source.start, 0, columns.source.stop, strip.height))
        box = (columns.box[0], 0, columns.box[1], strip.height)
        resized = part.resize((columns.target, strip.height), resample, box)
        kept = resized.crop((columns.start, 0, columns.start + width, strip.height))
        narrow.paste(kept, (0, top - rows.source.start))
    resized = narrow.resize((width, rows.target), resample, (0, rows.box[0], width, rows.box[1]))
    return resized.crop((0, rows.start, width, rows.start + height))
