"""Few-shot sampling and base/new class splits, as the published CoOp code draws them."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..encoding import distinct_classnames
from ..errors import some
from .classnames import class_label, classnames_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

CLASS_SUBSETS = ("all", "base", "new")
MAX_VALIDATION_SHOTS = 4


def few_shot_indices(labels: Sequence[int], num_shots: int, seed: int | random.Random) -> list[int]:
    """The images that the published code picks: `num_shots` of each class, without replacement.

    Classes come in order of first appearance, and each draws by `random.sample` from one generator (Dassl's
    `generate_fewshot_dataset`). A class with fewer images gives all it has.

    Args:
        labels (`Sequence[int]`): the label of each image.
        num_shots (`int`): images a class; 0 means all images.
        seed: of the draw; or a `random.Random` to go on drawing from, as published for the validation images.

    Returns:
        Positions in `labels`.

    Raises:
        ValueError: `num_shots` is negative.
    """
    if num_shots < 0:
        raise ValueError(f"num_shots must be 0 (all images) or more, got {num_shots}")
    if num_shots == 0:
        return list(range(len(labels)))
    generator = seed if isinstance(seed, random.Random) else random.Random(seed)
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(int(label), []).append(index)
    chosen: list[int] = []
    for images in by_class.values():
        chosen += generator.sample(images, num_shots) if len(images) >= num_shots else images
    return chosen


def few_shot_splits(splits: DatasetDict, num_shots: int, seed: int) -> DatasetDict:
    """Sample the training split, and `min(num_shots, 4)` images a class of the validation split where there is one.

    A validation split that is the test split too is kept whole, as published for ImageNet.

    Args:
        splits (`DatasetDict`): from [`load_image_splits`]; other splits are kept whole.
        num_shots (`int`): images a class; 0 means all.
        seed (`int`): the published runs use 1, 2 and 3.

    Raises:
        ValueError: `num_shots` is negative.
    """
    rows = few_shot_rows(splits, num_shots, seed)
    sampled = type(splits)({**splits, **{name: splits[name].select(chosen) for name, chosen in rows.items()}})
    warn_of_small_classes(sampled["train"], num_shots)
    return sampled


def hold_out_test(splits: DatasetDict, test_size: float) -> DatasetDict:
    """Take test images from the training images of each class, always the same ones.

    Args:
        splits (`DatasetDict`): from [`load_image_splits`], without test images.
        test_size (`float`): their share of the images, between 0 and 1.

    Raises:
        ValueError: there are test images already, or too few images for a share of each class.
    """
    from sklearn.model_selection import train_test_split

    if "test" in splits:
        raise ValueError(f"test_size={test_size} is for data without test images, and there are: leave it out")
    if not 0 < test_size < 1:
        raise ValueError(f"test_size is a share of the training images, between 0 and 1, got {test_size}")
    train = splits["train"]
    if single := [name for name, count in class_counts(train).items() if count < 2]:
        raise ValueError(f"test_size needs an image of each class on both sides, but these have one: {some(single)}")
    labels = train["label"][:]
    try:
        rows = train_test_split(range(len(labels)), test_size=test_size, stratify=labels, random_state=0)
    except ValueError as error:  # fewer images on a side than classes
        raise ValueError(f"cannot hold out test_size={test_size} of {len(labels)} images: {error}") from error
    return type(splits)({**splits, "train": train.select(sorted(rows[0])), "test": train.select(sorted(rows[1]))})


def describe_shots(shots: int | None, images: int | None, classes: int, what: str = "image") -> str:
    """How many images a prompt was learned from: "16 images a class", or "up to 16 images a class (92 in all)".

    Args:
        shots (`int`): of the largest class; "" where it is not known.
        images (`int`, *optional*): in all.
        classes (`int`): how many.
        what (`str`): what they are pictures of, one of them.
    """
    if not shots:
        return ""
    text = f"{shots} {what}{'s' if shots > 1 else ''} a class"
    return text if images in (None, shots * classes) else f"up to {text} ({images} in all)"


def few_shot_rows(splits: DatasetDict, num_shots: int, seed: int) -> dict[str, list[int]]:
    """The rows that [`few_shot_splits`] draws, of the splits that it draws from."""
    generator, rows = random.Random(seed), {}
    for name, shots in (("train", num_shots), ("validation", min(num_shots, MAX_VALIDATION_SHOTS))):
        if name in splits and (name == "train" or splits[name] is not splits.get("test")):
            rows[name] = few_shot_indices(splits[name]["label"][:], shots, generator)
    return rows


def warn_of_small_classes(train: Dataset, num_shots: int) -> None:
    """Warn where classes have fewer images than are asked for."""
    counts = class_counts(train)
    small = [f"{name!r} ({count})" for name, count in counts.items() if count < num_shots]
    if small:
        logger.warning(
            "%d of %d classes have fewer than %d training images, and all they have are used: %s",
            *(len(small), len(counts), num_shots, ", ".join(small[:10]) + (" …" if len(small) > 10 else "")),
        )


def class_counts(dataset: Dataset) -> dict[str, int]:
    """Images of each class, by name (equal ones with their labels), in label order."""
    names = distinct_classnames(classnames_of(dataset))
    counts = Counter(dataset["label"][:])
    return {name: counts[label] for label, name in enumerate(names)}


def subsample_classes(splits: DatasetDict, subset: str = "all") -> DatasetDict:
    """Keep half of the classes and number their labels from 0, as published for base-to-new generalisation.

    Args:
        splits (`DatasetDict`): from [`load_image_splits`].
        subset (`str`): "all", "base" (the first `ceil(K / 2)` labels) or "new" (the others).

    Raises:
        ValueError: another `subset`, or no class is left, or no image of some split.
    """
    if subset not in CLASS_SUBSETS:
        raise ValueError(f"subsample_classes must be one of {', '.join(CLASS_SUBSETS)}, got {subset!r}")
    if subset == "all":
        return splits
    names = classnames_of(splits["train"])
    half = math.ceil(len(names) / 2)
    first, kept = (0, names[:half]) if subset == "base" else (half, names[half:])
    if not kept:
        raise ValueError(f"subsample_classes={subset!r} leaves no class of {names}")

    def renumber(name: str, split: Dataset) -> Dataset:
        labels = split["label"][:]
        rows = [row for row, label in enumerate(labels) if first <= label < first + len(kept)]
        if not rows:
            raise ValueError(f"the {name} split has no images of the {subset} classes")
        renumbered = [label - first if first <= label < first + len(kept) else None for label in labels]
        # Selecting last keeps `datasets` from copying images to put the new labels beside them.
        split = split.remove_columns("label").add_column("label", renumbered, feature=class_label(kept))
        return split.select(rows)

    return change_splits(splits, renumber)


def change_splits(splits: DatasetDict, change: Callable[[str, Dataset], Dataset]) -> DatasetDict:
    """The same change to every split, by name. Two names for one split, as ImageNet's validation and test, stay so."""
    changed: dict[int, Dataset] = {}
    with _no_progress_bars():  # "Flattening the indices": nobody has asked for it
        for name, split in splits.items():
            if id(split) not in changed:
                changed[id(split)] = change(name, split)
    return type(splits)({name: changed[id(split)] for name, split in splits.items()})


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without the progress bars of `datasets`."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
