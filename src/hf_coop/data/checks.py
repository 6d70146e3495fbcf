"""Whether a data set fits a model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
