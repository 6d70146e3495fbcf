"""The image sets of an experiment: where they are, and the features of the images that its runs need."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from ..data import classnames_of, hand_crafted_template, load_benchmark, load_image_folder, load_image_splits
from ..data.benchmarks import IMAGE_SETS
from ..data.few_shot import few_shot_rows, warn_of_small_classes
from ..data.folders import SPLIT_NAMES
from ..demo import DEMO_SETS
from ..encoding import DEFAULT_TEMPLATE, check_templates
from ..files import naming_place
from ..training.run import PromptRun

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, DatasetDict

Draw = tuple[int, int]  # shots and seed


@dataclass(frozen=True)
class ImageSource:
    """An image set by the name that it has in results.

    Attributes:
        name (`str`): of the set.
        where: arguments of [`load_image_splits`], or `test_dir` alone for a folder that is only tested on.
        template (`str`): its hand-written prompt.
    """

    name: str
    where: Mapping[str, Any]
    template: str

    @property
    def benchmark(self) -> str | None:
        """Its name, where it is a set of the papers."""
        return self.where.get("benchmark")

    def load(self) -> DatasetDict:
        """Its splits; `test` alone where it has no others.

        Raises:
            ValueError: something is wrong with it, or it has no test images.
        """
        from datasets import DatasetDict

        if self.benchmark:
            splits = load_benchmark(self.benchmark, self.where.get("data_dir")).splits
        elif "train_dir" not in self.where and "test_dir" in self.where:
            splits = DatasetDict(test=load_image_folder(self.where["test_dir"]))
        else:
            splits = load_image_splits(**self.where)
        if "test" not in splits:
            raise ValueError(f"{self.name} has no test images: give test_dir, test_size, or test_split of a data set")
        return splits


def find_benchmark(name: str, data_dir: str | None = None, template: str | None = None) -> ImageSource:
    """A set of the papers, or one of the embedded ones.

    Args:
        name (`str`): "oxford_flowers", …; "demo", "demo_inverted", ….
        data_dir (`str`, *optional*): as in [`load_benchmark`].
        template (`str`, *optional*): its hand-written prompt; default: the set's own.

    Raises:
        ValueError: there is none of that name.
    """
    check_templates(template or DEFAULT_TEMPLATE)
    if name in DEMO_SETS:
        return ImageSource(name, {"dataset_name": name}, template or DEFAULT_TEMPLATE)
    if name not in IMAGE_SETS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join([*DEMO_SETS, *IMAGE_SETS])}")
    return ImageSource(name, {"benchmark": name, "data_dir": data_dir}, template or hand_crafted_template(name))


def own_images(where: Mapping[str, Any], template: str | None = None) -> ImageSource:
    """A folder of images or a data set, called as it is called there (a folder "flowers/train": flowers).

    Args:
        where: arguments of [`load_image_splits`]: `train_dir` and `test_dir`, or `dataset_name`, and others.
        template (`str`, *optional*): its hand-written prompt; default: CLIP's.
    """
    check_templates(template or DEFAULT_TEMPLATE)
    path = Path(where.get("dataset_name") or where.get("train_dir") or where["test_dir"])
    if path.expanduser().exists():
        path = path.expanduser().resolve()  # no name is ".."
    name = path.parent.name if path.name in SPLIT_NAMES else path.name.removesuffix(".parquet")
    return ImageSource(name, where, template or DEFAULT_TEMPLATE)


def find_target(name: str, data_dir: str | None = None) -> ImageSource:
    """A set to test on: a benchmark, a folder with one sub-folder of images a class, or else a data set.

    Raises:
        ValueError: there is none of that name.
    """
    if name in DEMO_SETS or name in IMAGE_SETS:
        return find_benchmark(name, data_dir)
    if Path(name).expanduser().is_dir() and any(path.is_dir() for path in Path(name).expanduser().iterdir()):
        return own_images({"test_dir": name})
    if Path(name).exists() or "/" in name:
        return own_images({"dataset_name": name})
    raise ValueError(
        f"no image set {name!r} to test on: it is neither a folder nor user/name on the Hub; the benchmarks are "
        f"{', '.join([*DEMO_SETS, *IMAGE_SETS])}"
    )


def fingerprint(splits: DatasetDict) -> str:
    """A hash of class names and labels, which stays when the images are moved, and tells other sets of that name."""
    from datasets.fingerprint import Hasher

    parts = [(name, classnames_of(split), split["label"][:]) for name, split in sorted(splits.items())]
    return Hasher.hash(parts)


def encode_set(splits: DatasetDict, draws: Collection[Draw], encoder: PromptRun, folder: Path) -> None:
    """Write the features of all test images, and of the training and validation images that some run draws.

    Args:
        splits (`DatasetDict`): of [`ImageSource.load`].
        draws: shots and seeds of the runs.
        encoder: gives the image tower.
        folder (`Path`): where [`load_features`] finds them.

    Raises:
        ValueError: an image cannot be read; its path is named.
        OSError: they cannot be written.
    """
    drawn: dict[str, set[int]] = {}
    for shots, seed in {*draws}:
        for name, own in few_shot_rows(splits, shots, seed).items():
            drawn.setdefault(name, set()).update(own)
    if drawn:
        warn_of_small_classes(splits["train"], max(shots for shots, _ in draws))
    shutil.rmtree(folder, ignore_errors=True)
    for name, rows in {**drawn, "test": set(range(len(splits["test"])))}.items():
        split = splits[name]
        chosen = sorted(rows)
        embeds = encoder.image_embeds(split if len(chosen) == len(split) else split.select(chosen))[:, 0]
        with without_bars(), naming_place(folder):
            _with_features(split, chosen, embeds).save_to_disk(str(folder / name))


def _with_features(split: Dataset, rows: list[int], embeds: torch.Tensor) -> Dataset:
    """The labels of a split with features beside them, which are empty lists for all but some rows."""
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features, List, Value

    lengths = np.zeros(len(split), dtype=np.int64)
    lengths[rows] = embeds.shape[1]
    offsets = np.concatenate([[0], lengths.cumsum()])
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(embeds.numpy().ravel()))
    features = Features({"image_embeds": List(Value("float32")), "label": split.features["label"]})
    table = pa.table({"image_embeds": column.cast(pa.list_(pa.float32())), "label": pa.array(split["label"][:])})
    return Dataset(table, info=DatasetInfo(features=features))


def load_features(folder: Path) -> DatasetDict:
    """What [`encode_set`] wrote: splits with the columns `image_embeds` and `label`, read when they are used."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({path.name: Dataset.load_from_disk(str(path)) for path in sorted(folder.iterdir())})


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of loading and saving, of which each run would have several."""
    loading, saving = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if loading:
            logging.enable_progress_bar()
        if saving:
            enable_progress_bars()
