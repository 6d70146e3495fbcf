"""Whether a data set fits a model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    names = getattr(dataset.features["label"], "names", None)
    for label, own in enumerate(names or []):
        if own in classnames and classnames.index(own) != label:
            raise ValueError(
                f"{name} has other classes than the model: {own!r} is label {label} there and "
                f"{classnames.index(own)} in the model"
            )
    if names is not None and len(names) != len(classnames):
        raise ValueError(f"{name} has {len(names)} classes, the model has {len(classnames)}")
    for row, label in enumerate(dataset["label"][:]):
        if not isinstance(label, int) or not 0 <= label < len(classnames):
            raise ValueError(
                f"{name}: image {row} has the label {label!r}, but the model has {len(classnames)} classes"
            )
