"""Image features of CLIP's frozen tower, computed once and kept in the cache of `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from ..encoding.image_encoder import encode_pixels
from ..files import staged_file
from ..prediction import evaluation_mode
from ..version import __version__
from .crops import random_view
from .dataset_images import check_images, decode_image, encoded_images
from .feature_cache import feature_cache
from .folders import file_state
from .pixels import crops_to_pixels, fit_image, stack_pixels
from .rgb import to_rgb

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image
    from transformers import CLIPModel

    from ..modeling import HFCoOp

PIXEL_BYTES = 9 * 2**20  # of images that are read for a tower on a CPU at a time: 15 of 224 x 224 pixels
FEATURE_DTYPES = ("auto", "float32", "bfloat16", "float16")
T = TypeVar("T")
R = TypeVar("R")


def encode_images(
    model: HFCoOp,
    dataset: Dataset,
    *,
    views: int = 1,
    random: bool = False,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 128,
    dtype: str = "auto",
) -> torch.Tensor:
    """Features of every image, from the cache where they were computed before.

    The cache is a file of `datasets`, named by a hash of all that the features depend on: the images (not their
    labels), the weights, settings and precision of the image tower, the processor, the views and their seed. So a
    second run starts at once, and any change computes anew. The next images are read while the tower works.

    Args:
        model ([`HFCoOp`]): gives the tower and the image processor.
        dataset (`datasets.Dataset`): with a column `image`; or with a column `image_embeds`, taken as it is.
        views (`int`): of each image.
        random (`bool`): random crops and flips, instead of the processor's resize and centre crop.
        seed (`int`): of the crops.
        first (`int`): the number of the first image, where the data set is a part of a larger one: crops depend on it.
        batch_size (`int`): views through the tower at a time, at most.
        dtype (`str`): of the tower's products, as in [`feature_dtype`].

    Returns:
        `torch.Tensor` of shape `(N, views, D)` on the CPU, in fp32, not normalised.

    Raises:
        ValueError: an image cannot be read; its path is named. Or the tower cannot work in that precision.
        OSError: the cache cannot be written.
    """
    if "image_embeds" in dataset.column_names:
        embeds = dataset.with_format("numpy", columns=["image_embeds"])["image_embeds"][:]
        return torch.from_numpy(np.array(embeds, dtype=np.float32))[:, None]
    if not len(dataset):  # the share of a process of many
        return torch.zeros(0, views, model.clip.config.projection_dim)
    computed = feature_dtype(model.clip, dtype)
    fingerprint = features_fingerprint(model, dataset, views, random, seed, first, computed)
    images = encoded_images(dataset)

    def views_of(number: int, image: Image.Image) -> list[Any]:  # small, so that one image at a time is in memory
        if not random:
            return [fit_image(model.image_processor, image)]
        whole = to_rgb(image)
        return [random_crop(model, whole, [seed, number, view]) for view in range(views)]

    def pixels_of(rows: range) -> torch.Tensor:  # (len(rows) * views, 3, H, W)
        made = [decode_image(images[row]["image"], first + row, partial(views_of, first + row)) for row in rows]
        return stack_pixels(model.image_processor, [view for views in made for view in views])

    if model.clip.device.type == "cpu":  # whose tower takes a few at a time anyway
        batch_size = min(batch_size, PIXEL_BYTES // (12 * model.clip.config.vision_config.image_size**2))
    try:
        encoded = _map_tower(model, images, pixels_of, max(1, batch_size // views), views, computed, fingerprint)
    except ValueError:
        check_images(dataset, first)  # says more than the first error
        raise
    embeds = encoded.with_format("numpy")["image_embeds"][:]  # (N, views * D)
    return torch.from_numpy(np.array(embeds, dtype=np.float32)).unflatten(1, (views, -1))


def feature_dtype(clip: CLIPModel, name: str) -> torch.dtype:
    """The dtype in which the image tower multiplies.

    Args:
        clip (`CLIPModel`): on the device that it will work on.
        name (`str`): "float32", "bfloat16", "float16"; or "auto": bfloat16 where the processor has matrix units for it
            (AMX on CPUs, CUDA from Ampere on), else the dtype of the weights. Weights in lower precision keep theirs.

    Raises:
        ValueError: there is no such dtype, or the weights are in lower precision than asked for.
    """
    if name not in FEATURE_DTYPES:
        raise ValueError(f"feature_dtype must be one of {', '.join(FEATURE_DTYPES)}, got {name!r}")
    if name == "auto":
        return torch.bfloat16 if clip.dtype == torch.float32 and _has_bf16_units(clip.device) else clip.dtype
    asked = getattr(torch, name)
    if clip.dtype not in (torch.float32, asked):
        raise ValueError(
            f"feature_dtype={name!r}, but the model's weights are {clip.dtype}: load it in float32, or use auto"
        )
    return asked


def _has_bf16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()  # get_capabilities() came after torch 2.8


def made_ahead(make: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`make` of each item, the next one made in a thread of its own while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(make, items[0])
        for item in items[1:]:
            made, ahead = ahead.result(), thread.submit(make, item)
            yield made
        yield ahead.result()


def _map_tower(
    model: HFCoOp,
    images: Dataset,
    pixels_of: Callable[[range], torch.Tensor],
    batch_size: int,
    views: int,
    dtype: torch.dtype,
    fingerprint: str,
) -> Dataset:
    """The features of all images as a data set in the cache, computed unless it is there."""
    from datasets import Dataset, Features, List, Value, is_caching_enabled
    from pyarrow import ArrowInvalid

    # Data sets in memory have no cache folder of their own, so all features go to one place.
    cache_file = feature_cache() / f"{fingerprint}.arrow"
    width = views * model.clip.config.projection_dim
    batches = [range(len(images))[start : start + batch_size] for start in range(0, len(images), batch_size)]

    def mapping(file: Path | None) -> Dataset:
        pixels = made_ahead(pixels_of, batches)
        return images.map(
            lambda rows: {"image_embeds": _tower(model, next(pixels), dtype).reshape(len(rows), -1).numpy()},
            input_columns=[],
            with_indices=True,
            batched=True,
            batch_size=batch_size,
            remove_columns="image",
            features=Features({"image_embeds": List(Value("float32"), length=width)}),
            new_fingerprint=fingerprint,
            cache_file_name=file and str(file),
            desc="Encoding images",
        )

    try:
        if not is_caching_enabled():
            return mapping(None)
        with suppress(FileNotFoundError, ArrowInvalid):  # the latter of a damaged file
            return Dataset.from_file(str(cache_file))
        with staged_file(cache_file) as aside:
            mapping(aside)
        return Dataset.from_file(str(cache_file))
    except OSError as error:
        raise OSError(
            f"cannot keep the image features in {str(cache_file.parent)!r}: {error}; make room there, or set "
            "HF_DATASETS_CACHE to a folder elsewhere"
        ) from error


def _tower(model: HFCoOp, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    clip, kind = model.clip, model.clip.device.type
    with evaluation_mode(clip), torch.autocast(kind, dtype, enabled=dtype != clip.dtype):
        return encode_pixels(clip, pixels.to(clip.device, clip.dtype)).float().cpu()


def random_crop(model: HFCoOp, image: Image.Image, seed: Sequence[int]) -> Image.Image:
    """A random crop of the size that the tower takes, decided by `seed` alone."""
    size = model.clip.config.vision_config.image_size
    return random_view(image, size, size, np.random.default_rng(seed))


def features_fingerprint(
    model: HFCoOp, dataset: Dataset, views: int, random: bool, seed: int, first: int, dtype: torch.dtype
) -> str:
    """A hash of all that the features of `dataset` depend on."""
    from datasets.fingerprint import Hasher

    clip = model.clip
    crops = {"views": views, "seed": seed, "first": first} if random else "processor"
    settings = [clip.config.vision_config.to_dict(), model.image_processor.to_dict(), crops, dtype, __version__]
    weights = weights_fingerprint(clip.vision_model, clip.visual_projection)
    return Hasher.hash([images_fingerprint(dataset), weights, repr(settings)])


def images_fingerprint(dataset: Dataset) -> str:
    """A hash of the images: of the encoded bytes in the data set, of path, size and time of files beside it.

    The fingerprint that `datasets` gives does not do: it stays when the files behind the paths change.
    """
    from datasets.fingerprint import Hasher

    def contents() -> Iterator[bytes]:
        for row in encoded_images(dataset):
            cell = row["image"] or {"bytes": None, "path": ""}
            yield repr(len(cell["bytes"]) if cell["bytes"] else file_state(cell["path"] or "")).encode()
            yield cell["bytes"] or b""

    return Hasher.hash_bytes(contents())


def weights_fingerprint(*modules: nn.Module) -> str:
    """A hash of the values of all parameters and buffers: right for a revision, a folder or a model in memory."""
    from datasets.fingerprint import Hasher

    values = (tensor for module in modules for tensor in module.state_dict().values())
    return Hasher.hash_bytes(map(_bytes, values))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


class CachedImages:
    """Training images as features of one or several views, in memory on the training device.

    Args:
        embeds (`torch.Tensor` of shape `(N, V, D)`), labels (`torch.Tensor` of shape `(N,)`).
        seed (`int`): of the draw of a view for each image and epoch.
    """

    def __init__(self, embeds: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        self.embeds, self.labels, self.seed = embeds, labels, seed

    def batches(self, epoch: int, batches: Sequence[Sequence[int]]) -> Iterator[dict[str, torch.Tensor]]:
        """What [`HFCoOp`] takes, for each batch of rows; a pure function of seed and epoch."""
        count, views, _ = self.embeds.shape
        view = np.random.default_rng([self.seed, epoch]).integers(views, size=count)
        device = self.embeds.device
        embeds = self.embeds[torch.arange(count, device=device), torch.from_numpy(view).to(device)]  # (N, D)
        for batch in batches:
            rows = torch.tensor(batch, device=device)
            yield {"image_embeds": embeds[rows], "labels": self.labels[rows]}


class FreshCrops:
    """Training images as a fresh random crop in each epoch, for the image tower: the published recipe.

    Args:
        model ([`HFCoOp`]): gives the processor and sizes.
        dataset (`datasets.Dataset`): with columns `image` and `label`.
        seed (`int`): of the crops.
        num_workers (`int`): processes that read images.
    """

    def __init__(self, model: HFCoOp, dataset: Dataset, seed: int, num_workers: int = 0) -> None:
        self.model, self.seed, self.num_workers = model, seed, num_workers
        self.images, self.labels = encoded_images(dataset), dataset["label"][:]

    def batches(self, epoch: int, batches: Sequence[Sequence[int]]) -> Iterator[dict[str, torch.Tensor]]:
        """What [`HFCoOp`] takes, for each batch of rows; a pure function of seed and epoch."""
        from torch.utils.data import DataLoader

        def collate(rows: list[int]) -> dict[str, torch.Tensor]:
            crops = [
                random_crop(self.model, decode_image(self.images[row]["image"], row), [self.seed, epoch, row])
                for row in rows
            ]
            labels = torch.tensor([self.labels[row] for row in rows])
            return {"pixel_values": crops_to_pixels(self.model.image_processor, crops), "labels": labels}

        every_row = range(len(self.labels))
        yield from DataLoader(
            every_row,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
        )
