"""Sampling, sources and transforms of `hf_coop.data`."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PARITY
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets
from PIL import Image as PILImage

from hf_coop.data import (
    classnames_of,
    few_shot_indices,
    few_shot_splits,
    load_image_folder,
    load_image_splits,
    random_view,
    read_classnames,
    read_images,
    subsample_classes,
)
from hf_coop.data.checks import check_labelled_images
from hf_coop.data.dataset_images import check_images, encoded_images
from hf_coop.data.few_shot import class_counts


def colour(shade: int, size: tuple[int, int] = (8, 8)) -> PILImage.Image:
    return PILImage.new("RGB", size, (shade, 255 - shade, shade))


def image_folder(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            colour(number).save(root / name / f"{number}.png")
    return root


def labelled(names: list[str], labels: list, label: str = "label", feature: object = None) -> Dataset:
    features = Features({"image": Image(), label: feature or ClassLabel(names=names)})
    rows = {"image": [colour(number) for number in range(len(labels))], label: labels}
    return Dataset.from_dict(rows, features=features)


def saved(folder: Path, **splits: Dataset) -> str:
    DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "train", {"bus": 3, "red_car": 2, "train": 2})


class TestFewShot:
    RECORDED = json.loads((PARITY / "few_shot.json").read_text())

    @pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: f"{case['num_shots']}-{case['seed']}")
    def test_equals_the_published_sampling(self, case):
        found = few_shot_indices(self.RECORDED["labels"], case["num_shots"], case["seed"])
        assert found == case["train_indices"]

    def test_global_random_state_is_left_alone(self):
        random.seed(0)
        expected = random.Random(0).random()
        few_shot_indices([0, 1, 0, 1], 1, seed=5)
        assert random.random() == expected

    def test_zero_means_all(self):
        assert few_shot_indices([1, 0, 1], 0, seed=1) == [0, 1, 2]

    def test_labels_may_be_a_tensor(self):
        labels = [0, 0, 0, 1, 1, 1]
        assert few_shot_indices(torch.tensor(labels), 1, seed=1) == few_shot_indices(labels, 1, seed=1)

    def test_negative_is_refused(self):
        with pytest.raises(ValueError, match=r"num_shots must be 0 .* got -2"):
            few_shot_indices([0, 1], -2, seed=1)

    @pytest.mark.parametrize(("shots", "validation"), [(1, 1), (4, 4), (6, 4)])
    def test_validation_goes_on_with_the_same_draw(self, shots, validation):
        labels = [k % 3 for k in range(30)]
        split, test = labelled(["a", "b", "c"], labels), labelled(["a", "b", "c"], labels)
        splits = few_shot_splits(DatasetDict(train=split, validation=split, test=test), shots, seed=2)
        random.seed(2)
        drawn = {}
        for name, count in (("train", shots), ("validation", validation)):
            by_class = [[i for i in range(30) if labels[i] == k] for k in range(3)]
            drawn[name] = [i for images in by_class for i in random.sample(images, count)]
        for name, rows in drawn.items():
            assert [image.getpixel((0, 0))[0] for image in splits[name]["image"]] == rows
        assert len(splits["test"]) == 30

    def test_a_class_with_fewer_images_warns_and_gives_all(self, caplog):
        splits = few_shot_splits(DatasetDict(train=labelled(["many", "few"], [0, 0, 0, 1])), 3, seed=1)
        assert class_counts(splits["train"]) == {"many": 3, "few": 1}
        assert "'few' (1)" in caplog.text
        assert "'many'" not in caplog.text


class TestHoldOut:
    def test_is_stratified_and_always_the_same(self, tmp_path):
        folder = image_folder(tmp_path / "train", {"many": 20, "few": 5})
        splits = load_image_splits(folder, test_size=0.2)
        assert class_counts(splits["test"]) == {"few": 1, "many": 4}
        assert class_counts(splits["train"]) == {"few": 4, "many": 16}
        again = load_image_splits(folder, test_size=0.2)
        for name in splits:
            assert encoded_images(again[name])["image"][:] == encoded_images(splits[name])["image"][:]
        assert len({row["path"] for split in splits.values() for row in encoded_images(split)["image"]}) == 25

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (0, "between 0 and 1, got 0"),
            (1.5, "between 0 and 1, got 1.5"),
            (0.01, "cannot hold out test_size=0.01 of 7 images"),
        ],
    )
    def test_a_share_that_cannot_be_had(self, folder, size, message):
        with pytest.raises(ValueError, match=message):
            load_image_splits(folder, test_size=size)

    def test_where_there_are_test_images_or_single_ones(self, folder, tmp_path):
        with pytest.raises(ValueError, match="is for data without test images, and there are"):
            load_image_splits(dataset_name="demo", test_size=0.2)
        with pytest.raises(ValueError, match="needs an image of each class on both sides, but these have one: b"):
            load_image_splits(image_folder(tmp_path / "other", {"a": 2, "b": 1}), test_size=0.5)


class TestSubsampleClasses:
    NAMES = ("a", "b", "c", "d", "e")

    @pytest.mark.parametrize(("subset", "kept"), [("base", ["a", "b", "c"]), ("new", ["d", "e"])])
    def test_halves_the_classes_and_renumbers(self, subset, kept):
        labels = [4, 0, 2, 3, 1, 4]
        splits = subsample_classes(DatasetDict(train=labelled(list(self.NAMES), labels)), subset)
        train = splits["train"]
        assert train.features["label"].names == kept
        assert [train.features["label"].names[k] for k in train["label"]] == [
            self.NAMES[k] for k in labels if self.NAMES[k] in kept
        ]
        assert [image.getpixel((0, 0))[0] for image in train["image"]] == [
            row for row, k in enumerate(labels) if self.NAMES[k] in kept
        ]

    def test_a_split_without_images_of_the_classes(self):
        splits = DatasetDict(train=labelled(["a", "b"], [0, 1]), test=labelled(["a", "b"], [0, 0]))
        with pytest.raises(ValueError, match="the test split has no images of the new classes"):
            subsample_classes(splits, "new")

    def test_all_is_untouched_and_others_refused(self):
        splits = DatasetDict(train=labelled(["a", "b"], [0, 1]))
        assert subsample_classes(splits, "all") is splits
        with pytest.raises(ValueError, match="one of all, base, new, got 'half'"):
            subsample_classes(splits, "half")
        with pytest.raises(ValueError, match="leaves no class"):
            subsample_classes(DatasetDict(train=labelled(["a"], [0])), "new")


class TestFolder:
    def test_classes_are_the_sub_folders_even_one_called_train(self, folder):
        dataset = load_image_folder(folder)
        assert dataset.features["label"].names == ["bus", "red_car", "train"]
        assert dataset["label"][:] == [0, 0, 0, 1, 1, 2, 2]
        assert read_images(dataset, [2])[0].getpixel((0, 0)) == (2, 253, 2)

    def test_other_files_and_hidden_ones_are_no_images(self, folder):
        (folder / "bus" / "notes.txt").write_text("no image")
        (folder / "bus" / ".thumb.png").write_bytes(b"")
        (folder / ".cache").mkdir()
        assert len(load_image_folder(folder)) == 7

    def test_files_left_out_are_told(self, folder, caplog):
        (folder / "bus" / "photo.raw").write_bytes(b"x")
        load_image_folder(folder)
        assert "1 files in" in caplog.text
        assert "bus/photo.raw" in caplog.text

    def test_a_class_of_unknown_files_names_them(self, folder):
        (folder / "cat").mkdir()
        (folder / "cat" / "photo.raw").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"without any image in .*: cat; these are no images .*cat/photo.raw"):
            load_image_folder(folder)

    def test_a_link_that_leads_nowhere_cannot_be_read(self, folder):
        (folder / "bus" / "link.png").symlink_to(folder / "gone.png")
        with pytest.raises(ValueError, match=r"cannot read '.*bus/link.png'"):
            read_images(load_image_folder(folder), range(4))

    def test_images_in_a_linked_folder_are_found(self, folder, tmp_path):
        more = image_folder(tmp_path / "elsewhere", {"more": 2})
        (folder / "bus" / "more").symlink_to(more / "more")
        assert class_counts(load_image_folder(folder))["bus"] == 5

    @pytest.mark.parametrize("target", [".", "..", "../red_car"])
    def test_links_back_are_not_followed(self, folder, target):
        (folder / "bus" / "link").symlink_to(target)
        assert class_counts(load_image_folder(folder)) == {"bus": 3, "red_car": 2, "train": 2}

    def test_the_folder_above_the_splits(self, tmp_path):
        image_folder(tmp_path, {"train/cat": 1, "test/cat": 1})
        with pytest.raises(ValueError, match=r"holds splits \(test, train\), not classes"):
            load_image_folder(tmp_path)

    def test_fingerprint_knows_the_files(self, folder):
        before = load_image_folder(folder)._fingerprint
        assert load_image_folder(folder)._fingerprint == before
        colour(99, size=(9, 9)).save(folder / "bus" / "1.png")
        assert load_image_folder(folder)._fingerprint != before

    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"no such folder: .*nowhere"):
            load_image_splits(tmp_path / "nowhere")

    def test_no_images(self, tmp_path):
        (tmp_path / "empty" / "cat").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"no images in .*empty.*one sub-folder"):
            load_image_splits(tmp_path / "empty")

    def test_class_without_images(self, folder):
        (folder / "zebra").mkdir()
        with pytest.raises(ValueError, match=r"class folders without any image .*: zebra"):
            load_image_splits(folder)

    def test_a_class_missing_in_the_test_folder_is_no_error(self, folder, tmp_path, caplog):
        test = image_folder(tmp_path / "test", {"bus": 1, "train": 2})
        splits = load_image_splits(folder, test)
        assert splits["test"]["label"][:] == [0, 2, 2]
        assert classnames_of(splits["test"]) == classnames_of(splits["train"])
        assert "1 classes have no test images: red_car" in caplog.text

    def test_images_in_both_folders_are_told(self, folder, tmp_path, caplog):
        test = image_folder(tmp_path / "test", {"bus": 0, "red_car": 1, "train": 1})
        shutil.copy(folder / "bus" / "2.png", test / "bus" / "other.png")
        colour(77).save(test / "red_car" / "0.png")
        colour(78).save(test / "train" / "0.png")
        load_image_splits(folder, test)
        assert "1 of 3 test images are training images too" in caplog.text
        assert "bus/other.png" in caplog.text
        caplog.clear()
        load_image_splits(folder, folder)
        assert "7 of 7 test images are training images too" in caplog.text

    def test_one_class_alone_is_told(self, tmp_path, caplog):
        load_image_splits(image_folder(tmp_path / "one", {"bus": 2}))
        assert "one class only, 'bus'" in caplog.text

    def test_paths_of_home_and_empty_ones(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "names.txt").write_text("a\nb\nc\n")
        splits = load_image_splits("~/train", classnames_file="~/names.txt")
        assert classnames_of(splits["train"]) == ["a", "b", "c"]
        labelled(["a"], [0]).to_parquet(tmp_path / "set.parquet")
        assert len(load_image_splits(dataset_name="~/set.parquet")["train"]) == 1
        for options in ({"train_dir": ""}, {"train_dir": folder, "test_dir": " "}, {"dataset_name": ""}):
            name = list(options)[-1]
            with pytest.raises(ValueError, match=f"{name} is empty: give a path"):
                load_image_splits(**options)

    @pytest.mark.parametrize("inside", [".", "flowers", "one/two"])
    def test_a_zip_of_the_folder(self, folder, tmp_path, inside, datasets_cache):
        root = tmp_path / "zip"
        shutil.copytree(folder, root / inside)
        (root / "__MACOSX" / "bus").mkdir(parents=True)
        (root / "__MACOSX" / "bus" / "._0.png").write_bytes(b"x")
        archive = shutil.make_archive(str(tmp_path / "flowers"), "zip", root)
        for _ in range(2):
            dataset = load_image_folder(archive)
            assert classnames_of(dataset) == ["bus", "red_car", "train"]
            assert read_images(dataset, [2])[0].getpixel((0, 0)) == (2, 253, 2)
        assert dataset._fingerprint == load_image_folder(archive)._fingerprint  # so that features are found again

    def test_what_is_no_zip(self, tmp_path):
        (tmp_path / "notes.txt").write_text("no archive")
        with pytest.raises(ValueError, match=r"notes.txt' is neither a folder nor a zip or tar archive"):
            load_image_folder(tmp_path / "notes.txt")
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            archive.writestr("../outside/0.png", b"x")
        with pytest.raises(ValueError, match=r"evil.zip': '../outside/0.png' leads out of it"):
            load_image_folder(tmp_path / "evil.zip")

    def test_train_and_test_with_different_classes(self, folder, tmp_path):
        test = image_folder(tmp_path / "test", {"bus": 1, "tram": 1, "train": 1})
        with pytest.raises(ValueError, match="only test has tram, only train has red_car"):
            load_image_splits(folder, test)

    def test_test_folder(self, folder, tmp_path):
        test = image_folder(tmp_path / "test", {"bus": 1, "red_car": 1, "train": 1})
        splits = load_image_splits(folder, test)
        assert {name: len(split) for name, split in splits.items()} == {"train": 7, "test": 3}


class TestBrokenImages:
    @pytest.fixture
    def broken(self, folder: Path) -> Path:
        whole = (folder / "bus" / "0.png").read_bytes()
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        PILImage.fromarray(noise).save(folder / "red_car" / "1.png")
        cut = folder / "red_car" / "1.png"
        cut.write_bytes(cut.read_bytes()[:2000])
        (folder / "bus" / "2.png").write_bytes(b"not an image at all")
        assert len(whole) > 40
        return folder

    @pytest.mark.parametrize(("row", "name"), [(2, "bus/2.png"), (4, "red_car/1.png")])
    def test_the_path_is_named(self, broken, row, name):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            read_images(load_image_folder(broken), [row])

    def test_the_row_or_name_is_given_for_embedded_bytes(self):
        cells = [{"bytes": b"garbage", "path": None}, {"bytes": b"garbage", "path": "named.jpg"}, None]
        dataset = Dataset.from_dict({"image": cells}, features=Features({"image": Image()}))
        for row, name in enumerate(["image 0", "named.jpg", "image 2"]):
            with pytest.raises(ValueError, match=name):
                read_images(dataset, [row])

    @pytest.mark.parametrize("kind", ["qoi", "ppm", "dds", "avif", "tiff"])
    def test_whatever_the_decoder_raises(self, tmp_path, kind):
        PILImage.init()
        if kind.upper() not in PILImage.SAVE:
            pytest.skip(f"this Pillow writes no {kind}")
        folder = image_folder(tmp_path / "train", {"bus": 1})
        path = folder / "bus" / f"cut.{kind}"
        PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with contextlib.suppress(Exception), PILImage.open(path) as cut:
            cut.load()
            pytest.skip(f"this Pillow fills in what is missing of a {kind} file")  # DDS before 12.3
        with pytest.raises(ValueError, match=rf"cannot read '.*cut.{kind}' as an image"):
            read_images(load_image_folder(folder), [0, 1])
        embedded = Dataset.from_dict(
            {"image": [{"bytes": path.read_bytes(), "path": None}]}, features=Features({"image": Image()})
        )
        with pytest.raises(ValueError, match="cannot read image 0 as an image"):
            read_images(embedded, [0])

    def test_all_are_counted_and_the_way_on_is_named(self, broken):
        dataset = load_image_folder(broken)
        with pytest.raises(
            ValueError, match=r"bus/2.png.*; so it is with 1 more of 7 images\. .*--skip_broken_images"
        ):
            check_images(dataset)
        check_images(dataset.select([0, 1, 3]))

    def test_skipping_goes_on_and_counts(self, broken, caplog):
        splits = load_image_splits(broken, skip_broken_images=True)
        assert class_counts(splits["train"]) == {"bus": 2, "red_car": 1, "train": 2}
        assert "2 of 7 train images skipped" in caplog.text
        assert "red_car/1.png" in caplog.text

    def test_a_class_with_only_broken_images_has_none(self, broken):
        shutil.copy(broken / "bus" / "2.png", broken / "red_car" / "0.png")
        with pytest.raises(ValueError, match="classes without any training image: red_car"):
            load_image_splits(broken, skip_broken_images=True)

    def test_a_split_with_only_broken_images_is_empty(self, tmp_path):
        train, test = (image_folder(tmp_path / name, {"bus": 1}) for name in ("train", "test"))
        (test / "bus" / "0.png").write_bytes(b"broken")
        with pytest.raises(ValueError, match="the test split has no images"):
            load_image_splits(train, test, skip_broken_images=True)


class TestDataSets:
    NAMES = ("ant", "bee")

    def test_one_source_must_be_given(self, folder):
        for options in ({}, {"train_dir": folder, "dataset_name": "demo"}):
            with pytest.raises(ValueError, match="say where the images are"):
                load_image_splits(**options)
        with pytest.raises(ValueError, match="test_dir goes with train_dir"):
            load_image_splits(dataset_name="demo", test_dir=folder)

    def test_demo(self):
        splits = load_image_splits(dataset_name="demo")
        assert {name: len(split) for name, split in splits.items()} == {"train": 897, "test": 900}

    def test_save_to_disk_with_other_columns(self, tmp_path):
        data = labelled(list(self.NAMES), [0, 1, 1], label="species").rename_column("image", "photo")
        name = saved(tmp_path / "data", train=data, validation=data)
        splits = load_image_splits(dataset_name=name, image_column_name="photo", label_column_name="species")
        assert sorted(splits) == ["test", "train"]  # the validation images, for want of others
        assert splits["train"].column_names == ["image", "label"]
        assert splits["train"]["label"][:] == [0, 1, 1]

    def test_a_single_saved_split(self, tmp_path):
        labelled(list(self.NAMES), [0, 1]).save_to_disk(str(tmp_path / "one"))
        assert list(load_image_splits(dataset_name=str(tmp_path / "one"))) == ["train"]

    @pytest.mark.parametrize("as_folder", [False, True])
    def test_parquet(self, tmp_path, as_folder):
        path = tmp_path / "data" / "train.parquet"
        path.parent.mkdir()
        labelled(list(self.NAMES), [1, 0, 1]).to_parquet(str(path))
        splits = load_image_splits(dataset_name=str(path.parent if as_folder else path))
        assert splits["train"]["label"][:] == [1, 0, 1]
        assert read_images(splits["train"], [2])[0].getpixel((0, 0)) == (2, 253, 2)

    def test_all_three_splits(self, tmp_path):
        one = labelled(list(self.NAMES), [0, 1])
        name = saved(tmp_path / "data", train=one, validation=one, test=one)
        assert sorted(load_image_splits(dataset_name=name)) == ["test", "train", "validation"]
        assert sorted(load_image_splits(dataset_name=name, test_split="validation")) == ["test", "train"]

    def test_split_that_is_not_there(self, tmp_path):
        name = saved(tmp_path / "data", train=labelled(list(self.NAMES), [0, 1]))
        with pytest.raises(ValueError, match="no split 'dev'; it has train"):
            load_image_splits(dataset_name=name, test_split="dev")

    @pytest.mark.parametrize("option", ["image_column_name", "label_column_name"])
    def test_wrong_column_lists_the_others(self, tmp_path, option):
        name = saved(tmp_path / "data", train=labelled(list(self.NAMES), [0, 1]))
        with pytest.raises(ValueError, match=f"no column 'fine'; the columns are image, label: set {option}"):
            load_image_splits(dataset_name=name, **{option: "fine"})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"image_column_name": "number"},
                "'number' holds no images but .*int64.*the columns are image, label, num",
            ),
            ({"image_column_name": "vector"}, "'vector' holds no images but .*float32.*the columns are"),
            ({"label_column_name": "vector"}, "labels must be .*the columns are image, label, number, vector"),
            ({"image_column_name": "label"}, "'label' holds no images"),
            ({"label_column_name": "image"}, "labels must be"),
            ({"image_column_name": "name", "label_column_name": "name"}, "cannot be image and label both"),
        ],
    )
    def test_a_column_of_another_kind(self, tmp_path, options, message):
        data = labelled(["a", "b"], [0, 1]).add_column("number", [1, 2]).add_column("vector", [[1.0], [2.0]])
        data = data.cast_column("vector", List(Value("float32"))).add_column("name", ["x", "y"])
        with pytest.raises(ValueError, match=message):
            load_image_splits(dataset_name=saved(tmp_path / "set", train=data), **options)

    @pytest.mark.parametrize("name", ["missing.parquet", "./missing", "/missing/folder"])
    def test_no_such_file(self, name):
        with pytest.raises(ValueError, match=f"no such file or folder: '{name}'"):
            load_image_splits(dataset_name=name)

    def test_a_name_with_a_dot_is_no_file(self):
        with pytest.raises(ValueError, match=r"cannot load the data set 'user/food-v1.1'"):
            load_image_splits(dataset_name="user/food-v1.1")

    @pytest.mark.parametrize("kind", ["not parquet", "empty", "cut", "ragged"])
    def test_damaged_sets_are_named(self, tmp_path, kind):
        path = tmp_path / "set.parquet"
        labelled(["a"], [0]).to_parquet(path)
        if kind == "not parquet":
            path.write_bytes(b"nothing of the kind")
        elif kind == "empty":
            labelled(["a"], []).to_parquet(path)
        elif kind == "cut":
            path = Path(saved(tmp_path / "saved", train=labelled(["a"], [0])))
            (arrow,) = (path / "train").glob("*.arrow")
            arrow.write_bytes(arrow.read_bytes()[:300])
        else:
            path = tmp_path / "folder"
            path.mkdir()
            (path / "a.csv").write_text("image,label\n1,2\n3,4,5,6\n")
        with pytest.raises(ValueError, match=rf"cannot load the data set '{path}': .") as error:
            load_image_splits(dataset_name=str(path))
        assert "\n" not in str(error.value)

    def test_a_configuration_where_there_is_none(self, tmp_path):
        name = saved(tmp_path / "set", train=labelled(["a"], [0]))
        with pytest.raises(ValueError, match="has no configurations: leave dataset_config_name='x' out"):
            load_image_splits(dataset_name=name, dataset_config_name="x")

    def test_a_column_without_images(self, tmp_path):
        data = labelled(list(self.NAMES), [0, 1]).add_column("number", [1, 2])
        name = saved(tmp_path / "data", train=data)
        with pytest.raises(ValueError, match="'number' holds no images"):
            load_image_splits(dataset_name=name, image_column_name="number")


class TestClassNames:
    def names_file(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "names.txt"
        path.write_text(text, encoding="utf-8")
        return path

    def test_the_file_wins_in_label_order(self, folder, tmp_path):
        path = self.names_file(tmp_path, "\ufeffcity bus\nred car \ntrain\n")
        splits = load_image_splits(folder, classnames_file=path)
        assert splits["train"].features["label"].names == ["city bus", "red car", "train"]
        assert splits["train"]["label"][:] == [0, 0, 0, 1, 1, 2, 2]

    @pytest.mark.parametrize("text", ["train\nred_car\nbus", "Train\nRED  car\nBus"])
    def test_the_data_s_own_names_in_another_order_are_matched(self, folder, tmp_path, text):
        splits = load_image_splits(folder, folder, classnames_file=self.names_file(tmp_path, text))
        for split in splits.values():
            assert [name.lower().split()[0][:3] for name in classnames_of(split)] == ["tra", "red", "bus"]
            assert split["label"][:] == [2, 2, 2, 1, 1, 0, 0]

    @pytest.mark.parametrize("kind", ["strings", "class labels"])
    def test_those_of_a_data_set_too(self, tmp_path, kind):
        train = labelled(["ant", "bee"], [1, 0])
        if kind == "strings":
            train = labelled([], ["bee", "ant"], feature=Value("string"))
        name = saved(tmp_path / "data", train=train, test=train)
        splits = load_image_splits(dataset_name=name, classnames_file=self.names_file(tmp_path, "bee\nant"))
        for split in splits.values():
            assert classnames_of(split) == ["bee", "ant"]
            assert split["label"][:] == [0, 1]

    @pytest.mark.parametrize("text", ["city bus\ntrain\nred car", "bus\nTrain\ntram"])
    def test_a_name_that_is_another_class_s_is_refused(self, folder, tmp_path, text):
        with pytest.raises(ValueError, match=r"gives the name '[Tt]rain' to the class 'red_car', but it is that of"):
            load_image_splits(folder, classnames_file=self.names_file(tmp_path, text))

    def test_labels_from_1(self, tmp_path, caplog):
        train, test = (labelled([], labels, feature=Value("int64")) for labels in ([1, 3, 2, 3], [3, 1]))
        name, names = saved(tmp_path / "data", train=train, test=test), self.names_file(tmp_path, "ant\nbee\ncow")
        splits = load_image_splits(dataset_name=name, classnames_file=names)
        assert (splits["train"]["label"][:], splits["test"]["label"][:]) == ([0, 2, 1, 2], [2, 0])
        assert "the labels run from 1 to 3, not from 0: label 1 is taken for the first name, 'ant'" in caplog.text

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a\nb\n", "has 2 class names, but the data has 3 classes"),
            ("a\n\nc\n", "names.txt.*class name 1 is blank"),
        ],
    )
    def test_a_file_that_does_not_fit(self, folder, tmp_path, text, message):
        with pytest.raises(ValueError, match=message):
            load_image_splits(folder, classnames_file=self.names_file(tmp_path, text))

    def test_no_such_file(self, folder):
        with pytest.raises(ValueError, match=r"cannot read the class names in 'gone.txt'"):
            load_image_splits(folder, classnames_file="gone.txt")

    def test_folders_whose_names_make_the_same_prompt(self, tmp_path):
        train = image_folder(tmp_path / "train", {"hot_dog": 2, "Hot dog": 1, "cat": 1})
        test = image_folder(tmp_path / "test", {"hot_dog": 1, "Hot dog": 3, "cat": 1})
        splits = load_image_splits(train, test)
        assert classnames_of(splits["train"]) == classnames_of(splits["test"]) == ["Hot dog", "cat", "hot_dog"]
        assert class_counts(splits["train"]) == {"Hot dog": 1, "cat": 1, "hot_dog": 2}
        assert splits["test"]["label"][:] == [0, 0, 0, 1, 2]

    def test_numbers_are_warned_of_loudly(self, tmp_path, caplog):
        data = image_folder(tmp_path / "data", {"1": 1, "10": 1, "100": 1})
        load_image_splits(data)
        assert "THE CLASS NAMES ARE NUMBERS (1, 10, 100)" in caplog.text
        assert "classnames_file" in caplog.text
        caplog.clear()
        load_image_splits(data, classnames_file=self.names_file(tmp_path, "rose\ndaisy\nlily"))
        assert not caplog.records

    def test_names_for_numbers_in_the_order_of_the_alphabet(self, tmp_path, caplog):
        """The folders 1, 2, 10 sort as 1, 10, 2; a file in the order of the numbers would be wrong silently."""
        folder = image_folder(tmp_path / "train", {"1": 1, "2": 1, "10": 1})
        names = tmp_path / "names.txt"
        names.write_text("one\ntwo\nten\n\n")
        load_image_splits(train_dir=folder, classnames_file=names)
        assert "1 is 'one', 10 is 'two', 2 is 'ten'" in caplog.text

    @pytest.mark.parametrize("label", [None, "", " "])
    def test_a_string_label_that_is_missing(self, tmp_path, label):
        data = labelled([], ["a", "b", label], feature=Value("string"))
        with pytest.raises(ValueError, match=f"image 2 of the train split has the label {label!r}"):
            load_image_splits(dataset_name=saved(tmp_path / "set", train=data))

    def test_string_labels_are_classes_in_sorted_order(self, tmp_path):
        train = labelled([], ["cat", "ant", "cat"], feature=Value("string"))
        test = labelled([], ["cat"], feature=Value("string"))
        splits = load_image_splits(dataset_name=saved(tmp_path / "data", train=train, test=test))
        assert splits["train"].features["label"].names == ["ant", "cat"]
        assert (splits["train"]["label"][:], splits["test"]["label"][:]) == ([1, 0, 1], [1])

    def test_a_string_label_that_training_does_not_have(self, tmp_path):
        train, test = (labelled([], labels, feature=Value("string")) for labels in (["cat", "ant"], ["cat", "dog"]))
        with pytest.raises(ValueError, match="image 1 of the test split has the label 'dog', which is none of the 2"):
            load_image_splits(dataset_name=saved(tmp_path / "data", train=train, test=test))

    def test_numbers_without_names(self, tmp_path):
        name = saved(tmp_path / "data", train=labelled([], [0, 1, 0], feature=Value("int64")))
        with pytest.raises(ValueError, match="numbers without names: give classnames_file"):
            load_image_splits(dataset_name=name)
        splits = load_image_splits(dataset_name=name, classnames_file=self.names_file(tmp_path, "ant\nbee\n"))
        assert splits["train"].features["label"].names == ["ant", "bee"]

    def test_a_label_outside_the_names(self, tmp_path):
        name = saved(tmp_path / "data", train=labelled([], [0, 1, 2], feature=Value("int64")))
        with pytest.raises(ValueError, match=r"image 2 of the train split has the label 2, .* 2 classes: ant, bee"):
            load_image_splits(dataset_name=name, classnames_file=self.names_file(tmp_path, "ant\nbee\n"))

    def test_unlabelled_test_images(self, tmp_path):
        train, test = labelled(["ant", "bee"], [0, 1]), labelled(["ant", "bee"], [-1, -1])
        with pytest.raises(ValueError, match="image 0 of the test split has the label -1"):
            load_image_splits(dataset_name=saved(tmp_path / "data", train=train, test=test))

    def test_labels_of_neither_kind(self, tmp_path):
        name = saved(tmp_path / "data", train=labelled([], [0.5, 1.0], feature=Value("float32")))
        with pytest.raises(ValueError, match="labels must be class labels, strings or whole numbers"):
            load_image_splits(dataset_name=name)

    def test_test_classes_in_another_order_are_matched_by_name(self, tmp_path):
        train, test = labelled(["ant", "bee"], [0, 1]), labelled(["bee", "ant"], [0, 0, 1])
        splits = load_image_splits(dataset_name=saved(tmp_path / "data", train=train, test=test))
        assert splits["test"]["label"][:] == [1, 1, 0]
        assert splits["test"].features["label"].names == ["ant", "bee"]

    def test_class_without_training_image(self, tmp_path):
        name = saved(tmp_path / "data", train=labelled(["ant", "bee", "cow"], [0, 2]))
        with pytest.raises(ValueError, match="classes without any training image: bee"):
            load_image_splits(dataset_name=name)


class TestEqualNames:
    """As ImageNet has them: its classes 657 and 744 are both called "missile"."""

    NAMES = ("missile", "cat", "missile", "dog", "missile")

    @pytest.fixture
    def splits(self, tmp_path) -> DatasetDict:
        folders = [
            image_folder(tmp_path / name, {f"n0{k}": 1 + (k == 2) for k in range(5)}) for name in ("train", "test")
        ]
        file = tmp_path / "names.txt"
        file.write_text("\n".join(self.NAMES) + "\n")
        assert read_classnames(file) == list(self.NAMES)
        return load_image_splits(*folders, classnames_file=file)

    def test_are_kept_in_label_order(self, splits):
        for split in splits.values():
            assert classnames_of(split) == list(self.NAMES)
            assert split["label"][:] == [0, 1, 2, 2, 3, 4]
        assert list(class_counts(splits["train"]).values()) == [1, 1, 2, 1, 1]
        assert list(class_counts(splits["train"]))[1:3] == ["cat", "missile (label 2)"]

    def test_stay_through_what_is_done_with_a_data_set(self, splits, tmp_path):
        train = splits["train"]
        renamed = train.rename_column("image", "photo").select([3, 0]).map(lambda row: {"more": 1}).shuffle(seed=0)
        assert classnames_of(renamed) == list(self.NAMES)
        assert classnames_of(concatenate_datasets([train, splits["test"]])) == list(self.NAMES)
        train.to_parquet(str(tmp_path / "train.parquet"))
        for name in (str(tmp_path / "train.parquet"), saved(tmp_path / "disk", **splits)):
            again = load_image_splits(dataset_name=name)
            assert classnames_of(again["train"]) == list(self.NAMES)
            assert again["train"]["label"][:] == train["label"][:]

    @pytest.mark.parametrize(
        ("subset", "kept", "labels"),
        [("base", ["missile", "cat", "missile"], [0, 1, 2, 2]), ("new", ["dog", "missile"], [0, 1])],
    )
    def test_halves(self, splits, subset, kept, labels):
        half = subsample_classes(few_shot_splits(splits, 2, seed=1), subset)
        assert classnames_of(half["test"]) == kept
        assert half["test"]["label"][:] == labels

    def test_string_labels_that_differ_in_spelling_only(self, tmp_path):
        data = labelled([], ["hot_dog", "Hot dog", "hot dog "], feature=Value("string"))
        splits = load_image_splits(dataset_name=saved(tmp_path / "data", train=data))
        assert classnames_of(splits["train"]) == ["Hot dog", "hot dog", "hot_dog"]
        assert splits["train"]["label"][:] == [2, 0, 1]

    def test_fit_a_model_of_the_same_names_alone(self, splits):
        train = splits["train"]
        check_labelled_images(train, self.NAMES)
        check_labelled_images(train, train.features["label"].names)
        others = ["cat", "missile", *self.NAMES[2:]]
        with pytest.raises(ValueError, match="'missile' is label 0 there and 1 or 2 or 4 in the model"):
            check_labelled_images(train, others)
        with pytest.raises(ValueError, match="has 5 classes, the model has 2"):
            check_labelled_images(train, ["bus", "tram"])

    def test_a_data_set_that_names_no_classes(self):
        data = labelled([], ["a", "b"], feature=Value("string"))
        for unnamed in (data, data.remove_columns("label")):
            with pytest.raises(ValueError, match="names no classes"):
                classnames_of(unnamed)


class TestRandomView:
    def test_size_and_determinism(self):
        image = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
        first, again, other = (random_view(image, 32, 24, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first.size == (24, 32)
        assert first.tobytes() == again.tobytes() != other.tobytes()

    def test_crops_cover_the_published_range_of_areas_and_flip_half_of_the_time(self):
        x, y = np.meshgrid(np.linspace(0, 255, 256), np.linspace(0, 255, 256))
        ramp = PILImage.fromarray(np.stack([x, y, y], -1).astype(np.uint8))  # a crop shows where it lay
        areas, flips = [], 0
        for seed in range(300):
            view = np.asarray(random_view(ramp, 16, 16, np.random.default_rng(seed))).astype(float)
            left, right = view[:, 0, 0].mean(), view[:, -1, 0].mean()
            flips += left > right
            areas.append(abs(right - left) * (view[-1, :, 1].mean() - view[0, :, 1].mean()) / 255**2)
        assert 110 < flips < 190
        assert min(areas) < 0.12
        assert max(areas) > 0.8
        assert 0.4 < float(np.mean(areas)) < 0.56

    @pytest.mark.parametrize("size", [(300, 3), (3, 300), (1, 1)])
    def test_extreme_shapes(self, size):
        for seed in range(20):
            assert random_view(colour(3, size), 8, 8, np.random.default_rng(seed)).size == (8, 8)


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="hf_coop")
