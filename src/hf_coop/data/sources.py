"""Labelled images from folders, the Hub and local files, as `datasets` splits with columns `image` and `label`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo import DEMO_SETS, load_digits_dataset
from ..encoding import check_classnames
from ..errors import some, whole_message
from .benchmarks import load_benchmark
from .checks import check_belongs, one_source
from .classnames import class_label, labels_by_name, read_classnames
from .dataset_images import drop_broken_images, encoded_images
from .few_shot import change_splits, class_counts, hold_out_test
from .folders import load_image_folder, same_files
from .webdatasets import load_webdataset, webdataset_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

DEMO = "demo"  # the dataset_name of the embedded digits
ENCODED_IMAGE_TYPES = ("string", "large_string", "binary", "large_binary")  # paths, or files' contents
TEST_SPLITS = ("test", "validation")  # where the test images are, unless told


def load_image_splits(
    train_dir: str | os.PathLike[str] | None = None,
    test_dir: str | os.PathLike[str] | None = None,
    dataset_name: str | os.PathLike[str] | Dataset | Mapping[str, Dataset] | None = None,
    dataset_config_name: str | None = None,
    *,
    validation_dir: str | os.PathLike[str] | None = None,
    benchmark: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    classnames_file: str | os.PathLike[str] | None = None,
    skip_broken_images: bool = False,
    test_size: float | None = None,
    token: str | bool | None = None,
) -> DatasetDict:
    """Load the splits `train`, and `validation` and `test` where there are any, all checked.

    Paths may begin with `~`.

    Args:
        train_dir, validation_dir, test_dir: folders with one sub-folder of images a class, or zip files of them; or
        dataset_name: a Hub repository, a local data set, a `.parquet` file, a folder written by `save_to_disk`, or
            "demo" for the embedded digits ("demo_inverted", …: shifted versions of them); or a `Dataset` (of training
            images) or `DatasetDict` itself; or
        benchmark (`str`): one of the papers' image sets, which is below `data_dir`; see [`load_benchmark`].
        dataset_config_name (`str`, *optional*): its configuration.
        train_split, validation_split, test_split (`str`, *optional*): its splits. By default the training images are
            those of "train", the test images those of "test", else of "validation"; and "validation" is the validation
            split where "test" is another.
        image_column_name, label_column_name (`str`, *optional*): its columns, by default "image" and "label".
        classnames_file: a text file, one name a line, in label order; wins over the names in the data. The data's own
            names in another order are matched by name. Names may be equal.
        skip_broken_images (`bool`): leave out images that cannot be read, and count them.
        test_size (`float`, *optional*): the share of the training images of each class that are held out as test
            images, where there are none.
        token: for private repositories.

    Returns:
        `DatasetDict` whose splits have the columns `image` (`datasets.Image`) and `label` (`datasets.ClassLabel`;
        [`classnames_of`] gives its names).

    Raises:
        ValueError, OSError: anything that is wrong with the data, by name, before an image is decoded.
    """
    from datasets import DatasetDict

    _check_no_empty_path(train_dir=train_dir, test_dir=test_dir, dataset_name=dataset_name, data_dir=data_dir)
    _check_no_empty_path(validation_dir=validation_dir, classnames_file=classnames_file)
    source = one_source(train_dir=train_dir, dataset_name=dataset_name, benchmark=benchmark)
    check_belongs(source, "benchmark", data_dir=data_dir)
    check_belongs(
        source,
        "dataset_name",
        dataset_config_name=dataset_config_name,
        train_split=train_split,
        validation_split=validation_split,
        test_split=test_split,
        image_column_name=image_column_name,
        label_column_name=label_column_name,
    )
    check_belongs(source, "train_dir", validation_dir=validation_dir, test_dir=test_dir)
    if train_dir is not None:
        folders = {"train": train_dir, "validation": validation_dir, "test": test_dir}
        given = {name: folder for name, folder in folders.items() if folder is not None}
        if len(given) == 3 and Path(given["validation"]).resolve() == Path(given["test"]).resolve():
            raise ValueError(f"validation_dir and test_dir are both {os.fspath(given['test'])!r}: leave one out")
        splits = DatasetDict({name: load_image_folder(folder) for name, folder in given.items()})
        _warn_of_shared_images(splits)
    elif benchmark is not None:
        splits = load_benchmark(benchmark, data_dir).splits
        if "train" not in splits:
            raise ValueError(f"{benchmark} has test images alone: learn on another set, such as imagenet")
    else:
        loaded = load_dataset_dict(dataset_name, dataset_config_name, token)
        chosen = _choose_splits(loaded, train_split or "train", validation_split, test_split)
        columns = (image_column_name or "image", label_column_name or "label")
        splits = DatasetDict({name: image_and_label(split, *columns) for name, split in chosen.items()})
    splits = check_splits(splits, classnames_file, skip_broken_images)
    _check_every_class(splits["train"])
    return splits if test_size is None else hold_out_test(splits, test_size)


def check_splits(
    splits: DatasetDict, classnames_file: str | os.PathLike[str] | None, skip_broken_images: bool
) -> DatasetDict:
    """The splits under the same class names, and without broken images where that is asked for; none is empty.

    Args:
        splits (`DatasetDict`): with columns `image` and `label`.
        classnames_file, skip_broken_images: as in [`load_image_splits`].

    Raises:
        ValueError: a split has no images, or labels and names do not fit.
    """
    _check_not_empty(splits)
    splits = _name_classes(splits, classnames_file)
    if skip_broken_images:
        splits = change_splits(splits, lambda name, split: drop_broken_images(split, name))
        _check_not_empty(splits)
    return splits


def _check_no_empty_path(**paths: Any) -> None:
    for name, path in paths.items():
        if isinstance(path, (str, os.PathLike)) and not os.fspath(path).strip():
            raise ValueError(f"{name} is empty: give a path, or leave it out")


def _warn_of_shared_images(splits: DatasetDict) -> None:
    if "test" not in splits:
        return
    files = {name: encoded_images(split)["image"][:] for name, split in splits.items()}
    paths = {name: [cell["path"] for cell in cells] for name, cells in files.items()}
    if shared := same_files(paths["train"], paths["test"]):
        logger.warning(
            "%d of %d test images are training images too, so the accuracy on them says nothing of others: %s",
            *(len(shared), len(paths["test"]), some(shared)),
        )


def load_dataset_dict(
    name: str | os.PathLike[str] | Dataset | Mapping[str, Dataset], config_name: str | None, token: str | bool | None
) -> Mapping[str, Dataset]:
    """All splits of a data set, as they are, by its `dataset_name` and `dataset_config_name`.

    Raises:
        ValueError: there is none, or it cannot be loaded.
    """
    from datasets import Dataset, load_dataset, load_from_disk

    if isinstance(name, Dataset):
        return {"train": name}
    if isinstance(name, Mapping):
        return name
    path = Path(name).expanduser()
    saved_to_disk = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if config_name is not None and (name in DEMO_SETS or path.is_file() or saved_to_disk):
        raise ValueError(f"{os.fspath(name)!r} has no configurations: leave dataset_config_name={config_name!r} out")
    if name in DEMO_SETS:
        return load_digits_dataset(str(name))
    local = path.suffix == ".parquet" or os.fspath(name).startswith((".", "~")) or path.is_absolute()
    if local and not path.exists():
        raise ValueError(f"no such file or folder: {os.fspath(name)!r}")
    try:
        if path.is_file() and path.suffix == ".parquet":
            return load_dataset("parquet", data_files={"train": str(path)})
        if saved_to_disk:
            saved = load_from_disk(str(path))
            return {"train": saved} if isinstance(saved, Dataset) else saved
        place = os.path.expanduser(name)
        if config_name is None and (folder := webdataset_folder(place, token)) is not None:
            return load_webdataset(folder)
        return load_dataset(place, config_name, token=token)
    except Exception as error:  # of many libraries and kinds
        raise ValueError(f"cannot load the data set {os.fspath(name)!r}: {whole_message(error)}") from error


def _choose_splits(
    loaded: Mapping[str, Dataset], train: str, validation: str | None, test: str | None
) -> dict[str, Dataset]:
    for wanted in (train, validation, test):
        if wanted is not None and wanted not in loaded:
            raise ValueError(f"the data set has no split {wanted!r}; it has {some(loaded)}")
    test = test or next((name for name in TEST_SPLITS if name in loaded and name not in (train, validation)), None)
    if validation is not None and validation == test:
        raise ValueError(f"validation_split and test_split are both {test!r}: leave one out, or choose another")
    if validation is None and "validation" in loaded and "validation" not in (train, test):
        validation = "validation"
    if train == test:
        logger.warning("the training images are the test images too (%r): the accuracy says nothing of others", test)
    chosen = {"train": train, "validation": validation, "test": test}
    return {name: loaded[split] for name, split in chosen.items() if split is not None}


def image_and_label(split: Dataset, image_column: str, label_column: str) -> Dataset:
    """The two columns that count, by their usual names and types."""
    from datasets import ClassLabel, Image, Value

    there = f"the columns are {some(split.column_names)}: set"
    for option, column in (("image_column_name", image_column), ("label_column_name", label_column)):
        if column not in split.column_names:
            raise ValueError(f"no column {column!r}; {there} {option}")
    label_type, image_type = split.features[label_column], split.features[image_column]
    kind = label_type.dtype if isinstance(label_type, ClassLabel | Value) else ""
    if "int" not in kind and "string" not in kind:
        raise ValueError(
            f"labels must be class labels, strings or whole numbers, got {label_type}; {there} label_column_name"
        )
    encoded = isinstance(image_type, dict) and image_type.keys() == {"bytes", "path"}
    if not (encoded or isinstance(image_type, Image) or getattr(image_type, "dtype", "") in ENCODED_IMAGE_TYPES):
        raise ValueError(f"column {image_column!r} holds no images but {image_type}; {there} image_column_name")
    if image_column == label_column:
        raise ValueError(f"column {image_column!r} cannot be image and label both; {there} label_column_name")
    split = split.select_columns([image_column, label_column])
    split = split.rename_columns(
        {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    )
    return split if isinstance(split.features["image"], Image) else split.cast_column("image", Image())


def _name_classes(splits: DatasetDict, classnames_file: str | os.PathLike[str] | None) -> DatasetDict:
    """Give every split a `ClassLabel` with the same names: the file's, else the data's."""
    from datasets import ClassLabel, Value

    train = next(iter(splits.values()))  # or the test images, where they are alone
    label_type = train.features["label"]
    if isinstance(label_type, Value) and "string" in label_type.dtype:
        label_type = ClassLabel(names=sorted({name for name in train["label"][:] if name and name.strip()}))
    given = None if classnames_file is None else read_classnames(classnames_file)
    if not isinstance(label_type, ClassLabel):
        if given is None:
            raise ValueError("the labels are numbers without names: give classnames_file, one name a line")
        label_type = class_label(given)
    own = label_type.names
    if given is not None and len(given) != len(own):
        raise ValueError(
            f"{str(classnames_file)!r} has {len(given)} class names, but the data has {len(own)} classes: {some(own)}"
        )
    _warn_of_numbered_classes(own, given)
    names = given or own
    if len(names) == 1:
        logger.warning("there is one class only, %r: every image is taken for it, whatever is learned", names[0])
    order = labels_by_name(own, names, repr(str(classnames_file))) if given else range(len(own))
    numbers: dict[Any, int] = dict(zip(own, order, strict=True))
    first = _first_number(train, names)
    numbers |= {first + place: label for place, label in enumerate(order)}
    named = class_label(check_classnames(names))
    return change_splits(splits, lambda name, split: _relabel(split, name, numbers, own, named))


def _first_number(train: Dataset, names: Sequence[str]) -> int:
    """1 where the labels are whole numbers from 1 on, as in MATLAB's files, else 0."""
    labels = train["label"][:]
    if not all(isinstance(label, int) for label in labels) or (min(labels), max(labels)) != (1, len(names)):
        return 0
    logger.warning(
        "the labels run from 1 to %d, not from 0: label 1 is taken for the first name, %r, and so on",
        max(labels),
        names[0],
    )
    return 1


def _warn_of_numbered_classes(names: Sequence[str], given: Sequence[str] | None) -> None:
    if all(name.strip().isdigit() for name in given or names):
        logger.warning(
            "THE CLASS NAMES ARE NUMBERS (%s). Prompts are made of names, and numbers tell CLIP nothing: give the "
            "real names by classnames_file, a text file with one name a line in label order.",
            some(given or names),
        )
    elif given and all(name.isdigit() for name in names) and names != sorted(names, key=int):
        logger.warning(
            "the labels are numbers in the order of the alphabet, and the names of classnames_file were given to them "
            "in that order: %s. If the file is in the order of the numbers, sort it so.",
            some(f"{number} is {name!r}" for number, name in zip(names, given, strict=False)),
        )


def _relabel(split: Dataset, split_name: str, numbers: Mapping[Any, int], own: Sequence[str], named: Any) -> Dataset:
    """The split with the labels of `numbers`, by its names or numbers for the classes, under the names of `named`.

    Raises:
        ValueError: the split has classes that are not in `own`, the training images', or a label outside them.
    """
    from datasets import ClassLabel

    labels, found = split["label"][:], split.features["label"]
    if isinstance(found, ClassLabel):
        _check_known_classes(own, found.names, split_name)
        labels = [label if label is None or label < 0 else found.names[label] for label in labels]
    for row, label in enumerate(labels):
        if label not in numbers:
            raise ValueError(
                f"image {row} of the {split_name} split has the label {label!r}, which is none of the {len(own)} "
                f"classes: {some(own)}"
            )
    if found == named:
        return split
    relabelled = [numbers[label] for label in labels]
    return split.remove_columns("label").add_column("label", relabelled, feature=named)


def _check_known_classes(known: Sequence[str], found: Sequence[str], split_name: str) -> None:
    extra, missing = sorted({*found} - {*known}), sorted({*known} - {*found})
    if extra:
        raise ValueError(
            f"the train and {split_name} images have different classes: only {split_name} has {some(extra)}, "
            f"only train has {some(missing)}"
        )
    if missing:
        logger.warning("%d classes have no %s images: %s", len(missing), split_name, some(missing))


def _check_not_empty(splits: DatasetDict) -> None:
    for name, split in splits.items():
        if len(split) == 0:
            raise ValueError(f"the {name} split has no images")


def _check_every_class(train: Dataset) -> None:
    if missing := [name for name, count in class_counts(train).items() if count == 0]:
        raise ValueError(f"classes without any training image: {some(missing)}")
