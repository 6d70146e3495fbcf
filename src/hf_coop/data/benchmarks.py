"""The 15 image sets of the prompt learning papers: one table, and a reader for each of the four layouts.

`benchmarks.json` beside this file holds what the papers fixed of each: the hand-crafted template, the class names, and
the WordNet ids of ImageNet's classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ..encoding import DEFAULT_TEMPLATE
from .classnames import class_label

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

DATA_VARIABLE = "HF_COOP_DATA"  # the environment variable that says where the sets are
WHERE_FROM = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # published name: ours
Labelled = list[tuple[Path, int]]  # images with their labels


@dataclass(frozen=True)
class ImageSet:
    """A row of the table.

    Args:
        folder (`str`): where the set lies below the data folder.
        images (`str`): the images' folder in it.
        labels (`str`): the file in it with the labels and splits, or the class names.
        layout (`str`): which of `READERS` reads it.
        tar_repo (`str`): the data set of `koorye` on the Hub that holds `<folder>.tar.gz`.
        zip_name (`str`): the archive in `zhengli97/prompt_learning_dataset`; default: `<folder>.zip`.
        prompts_of (`str`): the set whose template and class names it has; default: its own.
    """

    folder: str
    images: str
    labels: str
    layout: str
    tar_repo: str = ""
    zip_name: str = ""
    prompts_of: str = ""


V2_IMAGES = "imagenetv2-matched-frequency-format-val"
IMAGE_SETS = {
    "caltech101": ImageSet(
        "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "splits", "Caltech-101"
    ),
    "oxford_pets": ImageSet("oxford_pets", "images", "split_zhou_OxfordPets.json", "splits", "Oxford-Pets"),
    "stanford_cars": ImageSet("stanford_cars", ".", "split_zhou_StanfordCars.json", "splits", "Stanford-Cars"),
    "oxford_flowers": ImageSet("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "splits", "Oxford-Flowers"),
    "food101": ImageSet("food-101", "images", "split_zhou_Food101.json", "splits", "Food-101", "food101.zip"),
    "fgvc_aircraft": ImageSet("fgvc_aircraft", "images", "variants.txt", "variants", "FGVC-Aircraft"),
    "sun397": ImageSet("sun397", "SUN397", "split_zhou_SUN397.json", "splits", "SUN397"),
    "dtd": ImageSet("dtd", "images", "split_zhou_DescribableTextures.json", "splits", "Describable-Textures-Dataset"),
    "eurosat": ImageSet("eurosat", "2750", "split_zhou_EuroSAT.json", "splits", "EuroSAT"),
    "ucf101": ImageSet("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "splits", "UCF101"),
    "imagenet": ImageSet("imagenet", "images", "classnames.txt", "wordnet"),
    "imagenetv2": ImageSet("imagenetv2", V2_IMAGES, "classnames.txt", "numbers", "ImageNet-V2", prompts_of="imagenet"),
    "imagenet_sketch": ImageSet(
        "imagenet-sketch", "images", "classnames.txt", "wordnet", "ImageNet-Sketch", prompts_of="imagenet"
    ),
    "imagenet_a": ImageSet(
        "imagenet-adversarial",
        "imagenet-a",
        "classnames.txt",
        "wordnet",
        "ImageNet-Adversarial",
        prompts_of="imagenet",
    ),
    "imagenet_r": ImageSet(
        "imagenet-rendition", "imagenet-r", "classnames.txt", "wordnet", "ImageNet-Rendition", prompts_of="imagenet"
    ),
}


class Benchmark(NamedTuple):
    """What [`load_benchmark`] gives.

    Args:
        classnames (`list[str]`): in label order; ImageNet has two names twice.
        template (`str`): the set's hand-crafted prompt.
        splits (`DatasetDict`): `train`, `validation` and `test`, or `test` alone, with the columns `image` (a path,
            read when it is used) and `label`.
    """

    classnames: list[str]
    template: str
    splits: DatasetDict


def load_benchmark(name: str, data_dir: str | os.PathLike[str] | None = None) -> Benchmark:
    """One of the 15 image sets with the splits, class names and label order of the published CoOp code.

    Images of one folder come in the order of their names. ImageNet's validation images are both validation and test
    split, so [`few_shot_splits`] does not sample them.

    Args:
        name (`str`): of the set, as the published code spells it: "oxford_flowers".
        data_dir: the folder that holds the sets' folders; see [`data_folder`].

    Raises:
        ValueError: no such set; its folder, images or split file are missing (the message says where they come from);
            or the split file names images that are not there, gives two names to a label, or leaves labels out.
    """
    root = data_folder(data_dir) / find_image_set(name).folder
    if missing := missing_part(name, root):
        raise ValueError(f"{name} is not there: no {str(missing)!r}; {how_to_get(name)}")
    return read_image_set(name, root)


def missing_part(name: str, root: Path) -> Path | None:
    """What is not there of a set: its folder, its images or its split file; ImageNet's class names are known."""
    image_set = IMAGE_SETS[name]
    folders, labels = (root, root / image_set.images), root / image_set.labels
    missing = [folder for folder in folders if not folder.is_dir()]
    if image_set.layout in ("splits", "variants") and not labels.is_file():
        missing.append(labels)
    return missing[0] if missing else None


def read_image_set(name: str, root: Path) -> Benchmark:
    """[`load_benchmark`] on the folder of the set itself, wherever it lies."""
    from datasets import DatasetDict

    image_set = IMAGE_SETS[name]
    classnames, splits = READERS[image_set.layout](root / image_set.images, root / image_set.labels)
    for split, labelled in splits.items():
        if not labelled:
            raise ValueError(f"{name} has no {split} images in {str(root)!r}")
    label_type = class_label(classnames)
    datasets = {split: _image_paths(labelled, label_type) for split, labelled in splits.items()}
    if splits.get("validation") is splits.get("test") is not None:
        datasets["validation"] = datasets["test"]
    return Benchmark(classnames, hand_crafted_template(name), DatasetDict(datasets))


def find_image_set(name: str) -> ImageSet:
    """The row of a set.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in IMAGE_SETS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(IMAGE_SETS)}")
    return IMAGE_SETS[name]


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the sets are: `data_dir`, else `$HF_COOP_DATA`, else `hf_coop_data` in the cache of Hugging Face."""
    from huggingface_hub.constants import HF_HOME

    return Path(data_dir or os.environ.get(DATA_VARIABLE) or Path(HF_HOME, "hf_coop_data")).expanduser()


def hand_crafted_template(name: str | None) -> str:
    """The prompt that the papers compare with on a set: "a photo of a {}, a type of flower."; without a set, CLIP's.

    Raises:
        ValueError: no such set.
    """
    if name is None:
        return DEFAULT_TEMPLATE
    return _published(find_image_set(name).prompts_of or name)["hand_crafted_template"]


def published_classnames(name: str) -> list[str]:
    """The class names of the whole set in label order, without its files; of a variant of ImageNet, all 1,000.

    Raises:
        ValueError: no such set.
    """
    return list(_published(find_image_set(name).prompts_of or name)["classnames"])


def benchmark_states(data_dir: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """For each set its folder, and whether it is there."""
    root, states = data_folder(data_dir), {}
    for name, image_set in IMAGE_SETS.items():
        place = root / image_set.folder
        missing = missing_part(name, place)
        states[name] = f"{place}: there" if missing is None else f"{missing}: not there"
    return states


def how_to_get(name: str) -> str:
    """What to do about a set that is not there."""
    if name == "imagenet":
        return (
            "ImageNet needs an account: get ILSVRC 2012 from https://image-net.org and put its class folders "
            "(n01440764, …) into imagenet/images/train and imagenet/images/val below the data folder"
        )
    return f"`hf-coop data get {name}` fetches it, and {WHERE_FROM} says how it is laid out"


@cache
def _published(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("benchmarks.json").read_text(encoding="utf-8"))[name]


def _image_paths(labelled: Labelled, label_type: Any) -> Dataset:
    from datasets import Dataset, Features, Image

    columns = {"image": [str(path) for path, _ in labelled], "label": [label for _, label in labelled]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": label_type}))


def _read_split_file(images: Path, split_file: Path) -> tuple[list[str], dict[str, Labelled]]:
    """`{"train": [[path below the images' folder, label, class name], …], "val": …, "test": …}`."""
    try:
        content = json.loads(split_file.read_text(encoding="utf-8"))
        rows = {ours: content[published] for published, ours in SPLITS.items()}
        listed = {split: [(path, label, name) for path, label, name in rows[split]] for split in rows}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{str(split_file)!r} is no split file, which holds lists of [path, label, class name] for train, val and "
            f"test: {error!r}"
        ) from error
    names: dict[int, str] = {}
    for path, label, name in (row for rows in listed.values() for row in rows):
        if not (isinstance(path, str) and type(label) is int and isinstance(name, str)):
            raise ValueError(
                f"{str(split_file)!r}: not a path, a label and a class name: {[path, label, name]!r:.200}"
            )
        if names.setdefault(label, name) != name:
            raise ValueError(f"{str(split_file)!r} calls label {label} both {names[label]!r} and {name!r}")
    gap = next((label for label in range(len(names)) if label not in names), None)
    if gap is not None:
        raise ValueError(f"{str(split_file)!r} has {len(names)} classes, but label {gap} is none of them: no gaps")
    paths = {split: [(path, label) for path, label, _ in rows] for split, rows in listed.items()}
    return [names[label] for label in range(len(names))], _find_images(images, paths, split_file)


def _read_variant_lists(images: Path, variants: Path) -> tuple[list[str], dict[str, Labelled]]:
    """`variants.txt` gives the label order; lines of `images_variant_train.txt`, … are "0034309 707-320"."""
    classnames = _lines(variants)
    labels = {name: label for label, name in enumerate(classnames)}
    paths: dict[str, list[tuple[str, int]]] = {}
    for published, ours in SPLITS.items():
        listing = variants.with_name(f"images_variant_{published}.txt")
        paths[ours] = []
        for line in _lines(listing):
            image, _, name = line.partition(" ")
            if name not in labels:
                raise ValueError(f"{str(listing)!r}: {name!r} of the line {line!r:.200} is not in {str(variants)!r}")
            paths[ours].append((f"{image}.jpg", labels[name]))
    return classnames, _find_images(images, paths, variants)


def _read_wordnet_folders(images: Path, classnames_file: Path) -> tuple[list[str], dict[str, Labelled]]:
    """One folder a WordNet id, whose rank is the label; or `train` and `val`, each with such folders."""
    names = _wordnet_names(classnames_file)
    parts = {part: images / part for part in ("train", "val")}
    if not any(folder.is_dir() for folder in parts.values()):
        parts = {"test": images}
    found = {part: _class_folders(folder) for part, folder in parts.items()}
    ids = next(iter(found.values()))
    for part, folders in found.items():
        if folders != ids:
            only = sorted({*folders} ^ {*ids})
            raise ValueError(f"{str(images)!r}: train and val have other classes; only one has {', '.join(only[:5])}")
        if unknown := [folder for folder in folders if folder not in names]:
            raise ValueError(
                f"{str(parts[part])!r} holds {unknown[0]!r}, which has no name in {classnames_file.name!r}"
            )
    splits = {part: _images_in(parts[part], ids) for part in parts}
    if "val" in splits:
        splits = {"train": splits["train"], "validation": splits["val"], "test": splits["val"]}
    return [names[folder] for folder in ids], splits


def _read_numbered_folders(images: Path, classnames_file: Path) -> tuple[list[str], dict[str, Labelled]]:
    """Folders `0` … `999`: the names of the labels are the lines of the file."""
    names = list(_wordnet_names(classnames_file).values())
    numbers = [str(label) for label in range(len(names))]
    if missing := sorted({*numbers} - {*_class_folders(images)}, key=int):
        raise ValueError(f"{str(images)!r} has no folder of class {missing[0]} ({names[int(missing[0])]!r})")
    return names, {"test": _images_in(images, numbers)}


READERS = {
    "splits": _read_split_file,
    "variants": _read_variant_lists,
    "wordnet": _read_wordnet_folders,
    "numbers": _read_numbered_folders,
}


def _wordnet_names(classnames_file: Path) -> dict[str, str]:
    """Class names by WordNet id, from lines "n01440764 tench"; where there is no file, ImageNet's as published."""
    if not classnames_file.exists():
        imagenet = _published("imagenet")
        return dict(zip(imagenet["wnids"], imagenet["classnames"], strict=True))
    names = {wordnet_id: name for wordnet_id, _, name in (line.partition(" ") for line in _lines(classnames_file))}
    if unnamed := [wordnet_id for wordnet_id, name in names.items() if not name.strip()]:
        raise ValueError(f"{str(classnames_file)!r}: no class name after {unnamed[0]!r}")
    return names


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}; it comes with the set, see {WHERE_FROM}") from error


def _visible(folder: Path, directories: bool) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir() == directories)


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"no such folder: {str(folder)!r}")
    return _visible(folder, directories=True)


def _images_in(root: Path, folders: Iterable[str]) -> Labelled:
    """The files of the folders, which are labelled by their place."""
    labelled: Labelled = []
    for label, folder in enumerate(folders):
        files = _visible(root / folder, directories=False)
        if not files:
            raise ValueError(f"no images in {str(root / folder)!r}")
        labelled += [(root / folder / file, label) for file in files]
    return labelled


def _find_images(images: Path, paths: Mapping[str, Iterable[tuple[str, int]]], listing: Path) -> dict[str, Labelled]:
    """Paths below the images' folder as paths of files that exist, looked up one folder at a time."""
    files: dict[Path, set[str]] = {}

    def find(path: str) -> Path:
        parts = PureWindowsPath(path)  # takes both kinds of slashes apart
        if parts.anchor or ".." in parts.parts:
            raise ValueError(f"{str(listing)!r} names {path!r:.200}, which is not a path below {str(images)!r}")
        found = images / path
        if found.parent not in files:
            files[found.parent] = set(os.listdir(found.parent)) if found.parent.is_dir() else set()
        if found.name not in files[found.parent]:
            raise ValueError(f"{str(listing)!r} names the image {str(found)!r:.300}, which does not exist")
        return found

    return {split: [(find(path), label) for path, label in rows] for split, rows in paths.items()}
