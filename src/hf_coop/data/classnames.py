"""Class names of labelled images, in label order; they may be equal, which the label type of `datasets` refuses."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..encoding import check_classnames, clean_classname
from ..errors import some

if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset

logger = logging.getLogger(__name__)


def class_label(classnames: Sequence[str]) -> ClassLabel:
    """The label type of a data set with these classes, for [`classnames_of`] to read.

    `ClassLabel` wants its names distinct, but two classes of ImageNet are both called "missile". So the second of
    equal names gets a space at its end, the third two, and so on. They stay with the labels whatever is done with the
    data set, on disk and in parquet files too.

    Args:
        classnames (`Sequence[str]`): one name a class, in label order; white space around them is left out.
    """
    from datasets import ClassLabel

    seen: Counter[str] = Counter()
    distinct = []
    for name in (name.strip() for name in classnames):
        distinct.append(name + " " * seen[name])
        seen[name] += 1
    return ClassLabel(names=distinct)


def classnames_of(dataset: Dataset) -> list[str]:
    """The class names of a data set, in label order: what a model is made for.

    Unlike `dataset.features["label"].names` they may be equal, as "missile" of ImageNet.

    Args:
        dataset (`datasets.Dataset`): with a column `label` of type `ClassLabel`, such as [`load_image_splits`] gives.

    Raises:
        ValueError: it has no such column.
    """
    label_type = dataset.features.get("label")
    names = getattr(label_type, "names", None)
    if names is None:
        raise ValueError(f"the data set names no classes: its column 'label' is {label_type}, not a ClassLabel")
    return [name.strip() for name in names]


def read_classnames(path: str | os.PathLike[str]) -> list[str]:
    """Class names from a text file, one a line, in label order.

    Raises:
        ValueError: the file cannot be read, or a name is blank.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the class names in {os.fspath(path)!r}: {error}") from error
    try:
        return check_classnames([line.strip() for line in text.rstrip().splitlines()])
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from error


def labels_by_name(found: Sequence[str], given: Sequence[str], source: str) -> list[int]:
    """The label in `given` of each class of `found`.

    The same names in another order are matched by name: as they are written, else as prompts read them (in any case,
    with `_` for a space), equal ones in their order. Other names are given to the classes in their order.

    Args:
        found (`Sequence[str]`): the data's own names, as many as `given`.
        given (`Sequence[str]`): the names to use, in label order.
        source (`str`): where those are from.

    Raises:
        ValueError: a name is given to one class of the data and is that of another one.
    """
    spelled, wanted = ([clean_classname(name).lower() for name in names] for names in (found, given))
    for own, other in ((found, given), (spelled, wanted)):
        own = class_label(own).names
        labels = {name: label for label, name in enumerate(class_label(other).names)}
        if labels.keys() == {*own}:
            return [labels[name] for name in own]
    for label, name in enumerate(wanted):
        if name in spelled and spelled[label] != name:
            raise ValueError(
                f"{source} gives the name {given[label]!r} to the class {found[label]!r}, but it is that of another "
                "class of the data: give the names of all classes as they are in the data, in any order, or new names "
                "in label order"
            )
    return list(range(len(found)))


def match_classes(dataset: Dataset, classnames: Sequence[str]) -> Dataset:
    """The images whose classes a prompt has, with labels that count the prompt's classes.

    Names match whatever their case, and with underscores for spaces, as they make the same prompt. Equal names, as
    "missile" of ImageNet, are matched in their order. The data may lack classes of the prompt. Images of classes that
    the prompt does not have are left out, with a warning that names the classes.

    Args:
        dataset (`datasets.Dataset`): with a column `label` of type `ClassLabel`.
        classnames (`Sequence[str]`): of the prompt, in label order.

    Raises:
        ValueError: no image is of a class that the prompt has, or an image has no label.
    """
    names, labels = classnames_of(dataset), dataset["label"][:]
    for row, label in enumerate(labels):
        if label is None or label < 0:
            raise ValueError(
                f"image {row} has the label {label!r}, which is none of the {len(names)} classes: {some(names)}"
            )
    if names == list(classnames):
        return dataset
    found, known = (class_label([clean_classname(name).lower() for name in own]).names for own in (names, classnames))
    numbers = {name: number for number, name in enumerate(known)}
    if others := [names[label] for label in sorted(set(labels)) if found[label] not in numbers]:
        way_on = (
            f"The prompt has {some(classnames)}. Rename folders, or evaluate with classnames_file (the data's class "
            "names in label order) or set_classnames (the prompt in front of the data's names)"
        )
        left_out = sum(found[label] not in numbers for label in labels)
        if left_out == len(labels):
            raise ValueError(f"the images have none of the prompt's classes, but {some(others)}. {way_on}")
        told = "%d of %d images are left out, of classes that the prompt does not have: %s. %s"
        logger.warning(told, left_out, len(labels), some(others), way_on)
    renumbered = [numbers.get(found[label]) for label in labels]
    matched = dataset.remove_columns("label").add_column("label", renumbered, feature=class_label(classnames))
    # Selecting last keeps `datasets` from copying images to put the new labels beside them.
    return matched.select([row for row, label in enumerate(renumbered) if label is not None]) if others else matched
