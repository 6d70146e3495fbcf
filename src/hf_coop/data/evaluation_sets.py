"""Test images alone, for a prompt that is there already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import some
from .benchmarks import load_benchmark
from .checks import check_belongs, one_source
from .folders import load_image_folder
from .sources import TEST_SPLITS, check_splits, image_and_label, load_dataset_dict

if TYPE_CHECKING:
    from datasets import Dataset


def load_test_images(
    test_dir: str | os.PathLike[str] | None = None,
    dataset_name: str | os.PathLike[str] | None = None,
    dataset_config_name: str | None = None,
    *,
    benchmark: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    test_split: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    classnames_file: str | os.PathLike[str] | None = None,
    skip_broken_images: bool = False,
    token: str | bool | None = None,
) -> Dataset:
    """Load test images alone, checked; [`match_classes`] fits them to a prompt.

    Args:
        test_dir, dataset_name, benchmark: where they are, as in [`load_image_splits`]; a data set may have no others.
        dataset_config_name, data_dir, test_split, image_column_name, label_column_name, classnames_file,
            skip_broken_images, token: as in [`load_image_splits`].

    Raises:
        ValueError, OSError: anything that is wrong with the data, by name, before an image is decoded.
    """
    from datasets import DatasetDict

    source = one_source(test_dir=test_dir, dataset_name=dataset_name, benchmark=benchmark)
    check_belongs(source, "benchmark", data_dir=data_dir)
    check_belongs(
        source,
        "dataset_name",
        dataset_config_name=dataset_config_name,
        test_split=test_split,
        image_column_name=image_column_name,
        label_column_name=label_column_name,
    )
    if test_dir is not None:
        test = load_image_folder(test_dir)
    elif benchmark is not None:
        test = load_benchmark(benchmark, data_dir).splits["test"]
    else:
        loaded = load_dataset_dict(dataset_name, dataset_config_name, token)
        name = test_split or next((name for name in TEST_SPLITS if name in loaded), "test")
        if name not in loaded:
            raise ValueError(f"the data set has no split {name!r}; it has {some(loaded)}: choose one by test_split")
        test = image_and_label(loaded[name], image_column_name or "image", label_column_name or "label")
    return check_splits(DatasetDict({"test": test}), classnames_file, skip_broken_images)["test"]
