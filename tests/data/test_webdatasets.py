"""Data sets like `clip-benchmark/wds_*`, from the Hub on loopback and from a folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from loopback_hub import HubServer
from PIL import Image

from hf_coop.data import classnames_of, load_image_splits, read_images

NAMES = ("abyssinian", "missile", "missile")
COUNTS = {"train": (4, 3), "test": (5,)}  # images in each tar file


def shade(split: str, number: int) -> int:
    return number * 20 + (split == "test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tar files of training images and one of test images, as clip-benchmark lays them out."""
    root = tmp_path / "wds_cats"
    for split, counts in COUNTS.items():
        (root / split).mkdir(parents=True)
        (root / split / "nshards.txt").write_text(str(len(counts)))
        number = 0
        for tar, count in enumerate(counts):
            with tarfile.open(root / split / f"{tar}.tar", "w") as archive:
                for _ in range(count):
                    add_sample(archive, f"s{number:07d}", shade(split, number), number % 3)
                    number += 1
    (root / "classnames.txt").write_text("\n".join(NAMES))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.")
    return root


def add_sample(archive: tarfile.TarFile, key: str, grey: int, label: int) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(image, "png")
    for suffix, content in (("cls", str(label).encode()), ("png", image.getvalue())):
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def check(splits) -> None:
    for split, counts in COUNTS.items():
        numbers = range(sum(counts))
        assert classnames_of(splits[split]) == list(NAMES)
        assert splits[split]["label"][:] == [number % 3 for number in numbers]
        images = read_images(splits[split], numbers)
        assert [image.getpixel((0, 0))[0] for image in images] == [shade(split, number) for number in numbers]


def test_a_folder(folder):
    check(load_image_splits(dataset_name=str(folder)))


def test_the_hub(folder, tmp_path):
    code = "from hf_coop.data import load_image_splits\n"
    code += f"load_image_splits(dataset_name='clip-benchmark/wds_cats').save_to_disk({str(tmp_path / 'saved')!r})"
    with HubServer(tmp_path / "hub") as hub:
        hub.add("clip-benchmark/wds_cats", folder)
        done = hub.run(tmp_path / "home", "-c", code)
        assert done.returncode == 0, done.stderr[-2000:]
        assert not [call for call in hub.calls if "nshards" in call or "templates" in call]
    check(load_image_splits(dataset_name=str(tmp_path / "saved")))


def test_one_label_more_than_names(folder):
    (folder / "classnames.txt").write_text("abyssinian\nbengal\n")
    with pytest.raises(ValueError, match=r"wds_cats': classnames.txt has 2 names, but an image has the label 2"):
        load_image_splits(dataset_name=str(folder))


def test_samples_without_a_class(folder):
    for tar in folder.rglob("*.tar"):
        tar.unlink()
    with tarfile.open(folder / "train" / "0.tar", "w") as archive:
        info = tarfile.TarInfo("s0.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"cat"))
    with pytest.raises(ValueError, match=r"each sample must have one image and its class \('cls'\); it has __key__"):
        load_image_splits(dataset_name=str(folder))
