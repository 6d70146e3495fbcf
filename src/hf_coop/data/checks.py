"""Whether one source of images is given, with its own options, and whether a data set fits a model's classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .classnames import classnames_of

if TYPE_CHECKING:
    from datasets import Dataset


def check_labelled_images(dataset: Dataset, classnames: Sequence[str], name: str = "dataset") -> None:
    """Raise `ValueError` unless a data set can be classified by a model with these class names.

    Args:
        dataset (`datasets.Dataset`): with columns `image` (or `image_embeds`) and `label`.
        classnames (`Sequence[str]`): of the model, in label order.
        name (`str`): what the message calls the data set.
    """
    columns = dataset.column_names
    if "label" not in columns or not {"image", "image_embeds"} & set(columns):
        raise ValueError(f"{name} needs the columns 'image' and 'label'; it has {', '.join(columns)}")
    if len(dataset) == 0:
        raise ValueError(f"{name} has no images")
    if hasattr(dataset.features["label"], "names"):
        _check_same_classes(classnames_of(dataset), classnames, name)
    for row, label in enumerate(dataset["label"][:]):
        if not isinstance(label, int) or not 0 <= label < len(classnames):
            raise ValueError(
                f"{name}: image {row} has the label {label!r}, but the model has {len(classnames)} classes"
            )


def _check_same_classes(found: Sequence[str], classnames: Sequence[str], name: str) -> None:
    """A class that both know has the same label in both; names that the model does not know may be other words."""
    labels: dict[str, list[int]] = {}  # several of one name, where names are equal
    for label, own in enumerate(classnames):
        labels.setdefault(own.strip(), []).append(label)
    for label, own in enumerate(found):
        if own in labels and label not in labels[own]:
            raise ValueError(
                f"{name} has other classes than the model: {own!r} is label {label} there and "
                f"{' or '.join(map(str, labels[own]))} in the model"
            )
    if len(found) != len(classnames):
        raise ValueError(f"{name} has {len(found)} classes, the model has {len(classnames)}")


def one_source(**given: Any) -> str:
    """The name of the one source of images that is given.

    Args:
        given: each source by name, None where it is not given.

    Raises:
        ValueError: none is given, or several.
    """
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        folder = next(name for name in given if name.endswith("_dir"))
        raise ValueError(
            f"say where the images are, got {' and '.join(names) or 'nothing'}: {folder}, a folder with one "
            f"sub-folder a class; dataset_name, a Hub repository or local data set ('demo': embedded digits); or "
            "benchmark, one of the papers' image sets"
        )
    return names[0]


def check_belongs(source: str, owner: str, **options: Any) -> None:
    """Refuse options of another source than the one that is given.

    Args:
        source (`str`): what is given, as [`one_source`] says.
        owner (`str`): the source that the options are of.
        options: by name, None where they are not given.

    Raises:
        ValueError: naming the option.
    """
    for name, value in options.items():
        if value is not None and source != owner:
            raise ValueError(f"{name} goes with {owner}, not with {source}: leave {name}={os.fspath(value)!r} out")
