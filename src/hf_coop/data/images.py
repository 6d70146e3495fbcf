"""Anything that stands for an image, or for several."""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, TypeVar
from urllib import request
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from PIL import Image

from ..version import __version__
from .image_files import open_image_file
from .rgb import array_to_rgb, to_rgb

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

URL_SCHEMES = ("http://", "https://", "data:")
HTTP_HANDLERS: tuple[type[request.BaseHandler], ...] = (
    *(request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.HTTPRedirectHandler),
    *(request.HTTPErrorProcessor, request.HTTPDefaultErrorHandler, request.UnknownHandler),
)
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # that have a meaning in URLs
MAX_DOWNLOAD_BYTES = 64 * 2**20
MAX_DOWNLOAD_SECONDS, SILENCE_SECONDS = 60, 10  # in all, and between two pieces


def load_image(image: Any) -> Image.Image:
    """An RGB PIL image, upright, on white where it is transparent; the first one of an animation.

    Args:
        image: one of

            - a `PIL.Image`, a path, an open file, or the content of one (`bytes`);
            - what `datasets` calls an image that is not decoded, `{"bytes": …, "path": …}`;
            - a URL: `http://…`, `https://…` (at most 64 MiB in 60 seconds) or `data:image/…`;
            - an array, channels last: `(H, W)` or `(H, W, 1 | 3 | 4)`;
            - a `torch.Tensor`, channels first: `(H, W)` or `(1 | 3 | 4, H, W)`.

            Paths may begin with `~`. Arrays and tensors hold whole numbers from 0 to 255 or floats from 0 to 1.

    Raises:
        TypeError: it is none of these.
        ValueError: it cannot be fetched or read as an image, would take more than 384 MiB in memory (a JPEG is then
            read at half its size or less), or the array has another shape or range.
    """
    return convert_image(image, to_rgb)


def convert_image(image: Any, convert: Callable[[Image.Image], T]) -> T:
    """What `convert` makes of an image, which is of any mode and as it was stored.

    Raises:
        TypeError, ValueError: as [`load_image`]; an error of `convert` too is told as one of the image.
    """
    if is_url(image):
        return read_image(io.BytesIO(_fetch(image)), f"{image!r:.200}", convert)
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.path.expanduser(image), repr(os.fspath(image)), convert)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return read_image(io.BytesIO(image), f"{len(image)} bytes", convert)
    if isinstance(image, Mapping) and image.keys() == {"bytes", "path"}:
        content, path = image["bytes"], image["path"] or ""
        return read_image(path if content is None else io.BytesIO(content), repr(path), convert)
    if hasattr(image, "read"):
        return read_image(image, f"{image!r:.80}", convert)
    if isinstance(image, Image.Image):
        with naming_image(f"{getattr(image, 'filename', '') or image!r:.200}"):
            return convert(_unshared(image))
    if _is_tensor(image):
        return convert(_from_tensor(image))
    if hasattr(image, "__array__"):
        return convert(array_to_rgb(np.asarray(image)))
    raise TypeError(
        f"not an image: {image!r:.80} of type {type(image).__name__}; give a PIL image, path, URL, file, "
        "bytes, array or tensor"
    )


def _is_tensor(image: Any) -> bool:
    torch = sys.modules.get("torch")  # ONNX models are run without it
    return torch is not None and isinstance(image, torch.Tensor)


def is_url(image: Any) -> bool:
    """Whether `image` is a URL that [`load_image`] fetches or decodes."""
    return isinstance(image, str) and image.lower().startswith(URL_SCHEMES)


def read_image(file: Any, shown: str, convert: Callable[[Image.Image], T] = to_rgb) -> T:
    """An RGB PIL image from a file, or what `convert` makes of it; nothing is fetched, whatever a path reads like.

    Args:
        file: its path, or opened.
        shown (`str`): what the error calls it.
        convert (`Callable`): of the image as it was stored.

    Raises:
        ValueError: it cannot be read as an image.
    """
    with naming_image(shown), open_image_file(file) as opened:
        return convert(opened)


@contextmanager
def naming_image(shown: str) -> Iterator[None]:
    """Whatever goes wrong inside is a `ValueError` that names the image; Pillow's decoders raise about anything."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"cannot read {shown} as an image: {error or repr(error)}") from error


def _unshared(image: Image.Image) -> Image.Image:
    """The image, its pixels read; opened anew where they were not, so that they do not stay in the caller's object."""
    file = getattr(image, "fp", None)
    if file is not None and getattr(image, "tile", None):
        position = file.tell()
        try:
            again = Image.open(file)
            if (again.size, again.mode, again.format) == (image.size, image.mode, image.format) and not image.tell():
                again.load()
                return again
        finally:
            file.seek(position)
    image.load()
    return image


def _fetch(url: str) -> bytes:
    try:
        return _decode_data_url(url) if url.lower().startswith("data:") else _download(url)
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(f"cannot read {url!r:.200} as an image: {error or repr(error)}") from error


def _decode_data_url(url: str) -> bytes:
    kind, comma, data = url.partition(",")
    if not comma:
        raise ValueError("a data URL is data:image/…;base64,…")
    content = unquote_to_bytes(data)
    return base64.b64decode(content, validate=True) if kind.lower().endswith(";base64") else content


def _download(url: str) -> bytes:
    opener = request.OpenerDirector()  # of HTTP alone: a redirection cannot lead to a file or elsewhere
    for handler in HTTP_HANDLERS:
        opener.add_handler(handler())
    asked = request.Request(quote(url, safe=URL_CHARACTERS), headers={"User-Agent": f"hf-coop/{__version__}"})
    started, content = time.monotonic(), bytearray()
    with opener.open(asked, timeout=SILENCE_SECONDS) as response:
        while piece := response.read1(2**16):
            content += piece
            if len(content) > MAX_DOWNLOAD_BYTES:
                raise ValueError(f"it has more than {MAX_DOWNLOAD_BYTES} bytes")
            if time.monotonic() - started > MAX_DOWNLOAD_SECONDS:
                raise ValueError(f"it did not come within {MAX_DOWNLOAD_SECONDS} seconds")
    return bytes(content)


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise ValueError(
            f"an image tensor has shape (H, W) or (1 | 3 | 4, H, W), channels first, got {tuple(tensor.shape)}; with "
            "channels last, give tensor.numpy() or tensor.permute(2, 0, 1)"
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    return array_to_rgb((tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).numpy())


def load_images(images: Sequence[Any], first: int = 0) -> list[Image.Image]:
    """`load_image` on each; an error says which one, counting from `first`."""
    loaded = []
    for number, image in enumerate(images, start=first):
        try:
            loaded.append(load_image(image))
        except (TypeError, ValueError) as error:
            raise type(error)(f"image {number}: {error}") from error
    return loaded


def is_one_image(images: Any) -> bool:
    """Whether `images` stands for a single image, or for nothing known, and not for several.

    Arrays and tensors of four dimensions are batches; of one dimension, lists of what they hold.
    """
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
        return True
    if hasattr(images, "__array__"):
        return np.ndim(images) not in (1, 4)
    return isinstance(images, Mapping) or hasattr(images, "read") or not isinstance(images, Iterable)


def image_column(dataset: Any) -> Any:
    """The images of a data set: of its column `image`, or else of its only column of images.

    Args:
        dataset: a `Dataset` or `IterableDataset` of `datasets`.

    Raises:
        ValueError: it has no such column or several, or is a dictionary of splits.
    """
    from datasets import Image as ImageFeature

    names = dataset.column_names
    if isinstance(dataset, Mapping):
        raise ValueError(f"these are splits ({', '.join(dataset)}): give one of them, or its column of images")
    features = dataset.features or {}
    found = [name for name, kind in features.items() if isinstance(kind, ImageFeature)]
    if "image" in (names or []):
        found = ["image"]
    if len(found) != 1:
        listed = ", ".join(found or names or ["unknown"])
        raise ValueError(
            f"the data set has {'several columns' if found else 'no column'} of images ({listed}): give the column, "
            "dataset['…']"
        )
    return dataset[found[0]]


def rows_of(images: Iterable[Any]) -> Iterator[Any]:
    """One image after the other; where a column of `datasets` cannot decode one, the error says which."""
    number, rows = 0, iter(images)
    while True:
        try:
            image = next(rows)
        except StopIteration:
            return
        except Exception as error:
            if not hasattr(images, "column_name"):
                raise
            raise ValueError(f"image {number}: cannot be read: {error}") from error
        yield image
        number += 1
