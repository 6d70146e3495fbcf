"""Image features of CLIP's frozen tower, computed once and kept in the cache of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..encoding.image_encoder import encode_pixels
from ..version import __version__
from .crops import random_view
from .folders import file_state
from .sources import decode_image, encoded_images

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

    from ..modeling import HFCoOp

CACHE_FOLDER = "hf_coop_features"


def encode_images(
    model: HFCoOp,
    dataset: Dataset,
    *,
    views: int = 1,
    random: bool = False,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 128,
) -> torch.Tensor:
    """Features of every image, from the cache where they were computed before.

    The cache is a file of `datasets`, named by a hash of all that the features depend on: the images (not their
    labels), the weights and settings of the image tower, the processor, the views and their seed. So a second run
    starts at once, and any change computes anew.

    Args:
        model ([`HFCoOp`]): gives the tower and the image processor.
        dataset (`datasets.Dataset`): with a column `image`; or with a column `image_embeds`, taken as it is.
        views (`int`): of each image.
        random (`bool`): random crops and flips, instead of the processor's resize and centre crop.
        seed (`int`): of the crops.
        first (`int`): the number of the first image, where the data set is a part of a larger one: crops depend on it.
        batch_size (`int`): views through the tower at a time.

    Returns:
        `torch.Tensor` of shape `(N, views, D)` on the CPU, in fp32, not normalised.

    Raises:
        ValueError: an image cannot be read; its path is named.
        OSError: the cache cannot be written.
    """
    if "image_embeds" in dataset.column_names:
        return torch.tensor(np.asarray(dataset["image_embeds"][:], dtype=np.float32))[:, None]
    if not len(dataset):  # the share of a process of many
        return torch.zeros(0, views, model.clip.config.projection_dim)
    fingerprint = features_fingerprint(model, dataset, views, random, seed, first)
    encoded = _map_tower(model, dataset, views, random, seed, first, batch_size, fingerprint)
    embeds = encoded.with_format("numpy")["image_embeds"][:]  # (N, views * D)
    return torch.from_numpy(np.array(embeds, dtype=np.float32)).unflatten(1, (views, -1))


def _map_tower(
    model: HFCoOp,
    dataset: Dataset,
    views: int,
    random: bool,
    seed: int,
    first: int,
    batch_size: int,
    fingerprint: str,
) -> Dataset:
    from datasets import Features, List, Value, config, is_caching_enabled
    from pyarrow import ArrowInvalid

    def encode(cells: Sequence[dict[str, Any]], indices: Sequence[int]) -> dict[str, np.ndarray]:
        rows = [first + index for index in indices]
        images = [decode_image(cell, row) for cell, row in zip(cells, rows, strict=True)]
        if random:
            crops = [
                random_crop(model, image, [seed, row, view])
                for image, row in zip(images, rows, strict=True)
                for view in range(views)
            ]
            pixels = crops_to_pixels(model, crops)
        else:
            pixels = model.image_processor(images=images, return_tensors="pt").pixel_values
        return {"image_embeds": _tower(model, pixels).reshape(len(rows), -1).numpy()}

    # Data sets in memory have no cache folder of their own, so all features go to one place.
    cache_file = Path(config.HF_DATASETS_CACHE) / CACHE_FOLDER / f"{fingerprint}.arrow"
    width = views * model.clip.config.projection_dim
    mapping = partial(
        encoded_images(dataset).map,
        encode,
        input_columns="image",
        with_indices=True,
        batched=True,
        batch_size=max(1, batch_size // views),
        remove_columns="image",
        features=Features({"image_embeds": List(Value("float32"), length=width)}),
        new_fingerprint=fingerprint,
        cache_file_name=str(cache_file) if is_caching_enabled() else None,
        desc="Encoding images",
    )
    try:
        if is_caching_enabled():
            cache_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return mapping()
        except ArrowInvalid:  # the file is damaged
            cache_file.unlink(missing_ok=True)
            return mapping()
    except OSError as error:
        raise OSError(
            f"cannot keep the image features in {str(cache_file.parent)!r}: {error}; make room there, or set "
            "HF_DATASETS_CACHE to a folder elsewhere"
        ) from error


def _tower(model: HFCoOp, pixels: torch.Tensor) -> torch.Tensor:
    clip = model.clip
    was_training = clip.training
    clip.eval()
    try:
        return encode_pixels(clip, pixels.to(clip.device, clip.dtype)).float().cpu()
    finally:
        clip.train(was_training)


def random_crop(model: HFCoOp, image: Image.Image, seed: Sequence[int]) -> Image.Image:
    """A random crop of the size that the tower takes, decided by `seed` alone."""
    size = model.clip.config.vision_config.image_size
    return random_view(image, size, size, np.random.default_rng(seed))


def crops_to_pixels(model: HFCoOp, crops: Sequence[Image.Image]) -> torch.Tensor:
    """Crops `(B, 3, H, W)` as the tower takes them: the processor's scale and mean, without its resize and crop."""
    processed = model.image_processor(images=list(crops), do_resize=False, do_center_crop=False, return_tensors="pt")
    return processed.pixel_values


def features_fingerprint(model: HFCoOp, dataset: Dataset, views: int, random: bool, seed: int, first: int = 0) -> str:
    """A hash of all that the features of `dataset` depend on."""
    from datasets.fingerprint import Hasher

    clip = model.clip
    crops = {"views": views, "seed": seed, "first": first} if random else "processor"
    settings = [clip.config.vision_config.to_dict(), model.image_processor.to_dict(), crops, __version__]
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
            cells = self.images[rows]["image"]
            images = [decode_image(cell, row) for cell, row in zip(cells, rows, strict=True)]
            crops = [
                random_crop(self.model, image, [self.seed, epoch, row])
                for image, row in zip(images, rows, strict=True)
            ]
            labels = torch.tensor([self.labels[row] for row in rows])
            return {"pixel_values": crops_to_pixels(self.model, crops), "labels": labels}

        every_row = range(len(self.labels))
        yield from DataLoader(
            every_row,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
        )
