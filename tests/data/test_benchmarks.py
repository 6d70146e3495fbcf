"""The 15 image sets, on miniature copies, against what the published code reads from them."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path

import pytest
from benchmark_trees.make_trees import make_trees
from datasets import Dataset, Image

from hf_coop.data import (
    classnames_of,
    few_shot_splits,
    hand_crafted_template,
    load_benchmark,
    load_image_splits,
    subsample_classes,
)
from hf_coop.data.benchmarks import IMAGE_SETS, benchmark_states, data_folder, published_classnames

TREES = Path(__file__).parents[1] / "benchmark_trees"
PUBLISHED = json.loads(gzip.decompress((TREES / "published_splits.json.gz").read_bytes()))
CASES = [(name, case) for name, cases in PUBLISHED.items() for case in cases]
WITH_SPLIT_FILE = [name for name, image_set in IMAGE_SETS.items() if image_set.layout == "splits"]
OF_IMAGENET = [name for name in IMAGE_SETS if name.startswith("imagenet")]


@pytest.fixture(scope="session")
def other_trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trees(tmp_path_factory.mktemp("other-trees"), seed=7)


@pytest.fixture
def one_set(trees: Path, tmp_path: Path):
    """A data folder with a copy of one set, to break."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(trees / IMAGE_SETS[name].folder, tmp_path / IMAGE_SETS[name].folder))

    return copy


def rows(split: Dataset, root: Path) -> list[list]:
    """`[path below the data folder, label]` of each image; no image is read."""
    paths = [Path(cell["path"]) for cell in split.cast_column("image", Image(decode=False))["image"]]
    return [[str(path.relative_to(root)), label] for path, label in zip(paths, split["label"], strict=True)]


class TestEqualsThePublishedCode:
    @pytest.mark.parametrize(("name", "case"), CASES)
    def test_names_draws_and_halves_path_for_path(self, trees, name, case):
        shots, seed, classes = (part.split("=")[1] for part in case.split())
        benchmark, expected = load_benchmark(name, trees), PUBLISHED[name][case]
        splits = benchmark.splits
        if "train" in splits:
            splits = subsample_classes(few_shot_splits(splits, int(shots), int(seed)), classes)
        assert classnames_of(splits["test"]) == expected["classnames"]
        assert classes != "all" or benchmark.classnames == expected["classnames"]
        found = {name: rows(split, trees) for name, split in splits.items()}
        recorded = {"train": "train", "validation": "val", "test": "test"}
        assert found == {ours: expected[theirs] for ours, theirs in recorded.items() if theirs in expected}

    @pytest.mark.parametrize("name", WITH_SPLIT_FILE)
    def test_another_tree_with_a_split_file(self, other_trees, name):
        image_set = IMAGE_SETS[name]
        base = other_trees / image_set.folder
        listed = json.loads((base / image_set.labels).read_text())
        classnames, _, splits = load_benchmark(name, other_trees)
        for ours, theirs in {"train": "train", "validation": "val", "test": "test"}.items():
            folder = Path(image_set.folder, image_set.images)
            assert rows(splits[ours], other_trees) == [
                [str(folder / path), label] for path, label, _ in listed[theirs]
            ]
        assert dict(enumerate(classnames)) == {label: name for _, label, name in listed["train"]}
        random.seed(3)
        by_label: dict[int, list] = {}
        for row in rows(splits["train"], other_trees):
            by_label.setdefault(row[1], []).append(row)
        drawn = [row for of_label in by_label.values() for row in random.sample(of_label, 2)]
        assert rows(few_shot_splits(splits, 2, seed=3)["train"], other_trees) == drawn

    @pytest.mark.parametrize("name", [name for name in IMAGE_SETS if name not in WITH_SPLIT_FILE])
    def test_another_tree_of_folders_or_lists(self, other_trees, name):
        """Every image is there once (in ImageNet's validation split once more), under its class's name."""
        base = other_trees / IMAGE_SETS[name].folder
        names = {}
        if name != "fgvc_aircraft":
            names = dict(line.split(" ", 1) for line in (base / "classnames.txt").read_text().splitlines())
        classnames, _, splits = load_benchmark(name, other_trees)
        images = sorted(str(path.relative_to(other_trees)) for path in base.rglob("*.[jJ]*"))
        parts = [part for part in splits if part != "validation" or name == "fgvc_aircraft"]
        assert sorted(path for part in parts for path, _ in rows(splits[part], other_trees)) == images
        for part in parts:
            for path, label in rows(splits[part], other_trees):
                if name == "fgvc_aircraft":
                    listing = base / f"images_variant_{part.replace('validation', 'val')}.txt"
                    assert f"{Path(path).stem} {classnames[label]}\n" in listing.read_text()
                elif name == "imagenetv2":
                    assert (Path(path).parent.name, classnames[label]) == (str(label), list(names.values())[label])
                else:
                    assert classnames[label] == names[Path(path).parent.name]

    @pytest.mark.parametrize("name", IMAGE_SETS)
    def test_templates(self, name, trees):
        template = load_benchmark(name, trees).template
        assert template == hand_crafted_template(name)
        assert "{}" in template
        assert (template == "a photo of a {}.") == name.startswith(("imagenet", "caltech", "sun", "stanford"))

    def test_nothing_is_decoded(self, one_set):
        base = one_set("oxford_pets")
        for path in (base / "images").iterdir():
            path.write_bytes(b"not an image")
        assert len(load_benchmark("oxford_pets", base.parent).splits["test"]) > 0


class TestImageNet:
    def test_equal_names_keep_their_labels(self, trees):
        classnames, _, splits = load_benchmark("imagenet", trees)
        twice = [label for label, name in enumerate(classnames) if name in ("missile", "sunglasses")]
        assert len(twice) == 4
        assert classnames_of(splits["train"]) == classnames
        assert {*twice} <= {*splits["test"]["label"][:]}

    def test_the_published_names_stand_in_for_a_missing_file(self, one_set):
        base = one_set("imagenet_a")
        expected = load_benchmark("imagenet_a", base.parent).classnames
        (base / "classnames.txt").unlink()
        assert load_benchmark("imagenet_a", base.parent).classnames == expected

    def test_validation_is_the_test_split_even_after_halving(self, trees):
        splits = few_shot_splits(subsample_classes(load_benchmark("imagenet", trees).splits, "base"), 1, seed=1)
        assert len(splits["validation"]) == len(splits["test"]) == 18
        assert len(splits["train"]) == 6

    def test_classes_differ_between_train_and_val(self, one_set):
        base = one_set("imagenet")
        gone = sorted((base / "images" / "val").iterdir())[0]
        shutil.rmtree(gone)
        with pytest.raises(ValueError, match=f"train and val have other classes; only one has {gone.name}"):
            load_benchmark("imagenet", base.parent)

    def test_half_of_it(self, one_set):
        base = one_set("imagenet")
        shutil.rmtree(base / "images" / "train")
        with pytest.raises(ValueError, match=r"no such folder: '.*imagenet/images/train'"):
            load_benchmark("imagenet", base.parent)

    def test_an_unknown_folder(self, one_set):
        base = one_set("imagenet_r")
        (base / "imagenet-r" / "n99999999").mkdir()
        with pytest.raises(ValueError, match=r"imagenet-r' holds 'n99999999', which has no name in"):
            load_benchmark("imagenet_r", base.parent)

    def test_an_empty_class(self, one_set):
        base = one_set("imagenet_sketch")
        (base / "images" / "n01440764").mkdir()
        with pytest.raises(ValueError, match=r"no images in '.*images/n01440764'"):
            load_benchmark("imagenet_sketch", base.parent)

    def test_a_number_that_is_missing(self, one_set):
        base = one_set("imagenetv2")
        shutil.rmtree(base / "imagenetv2-matched-frequency-format-val" / "37")
        with pytest.raises(ValueError, match=r"no folder of class 37 \("):
            load_benchmark("imagenetv2", base.parent)

    def test_a_variant_cannot_be_learned(self, trees):
        with pytest.raises(ValueError, match="imagenet_a has test images alone: learn on another set"):
            load_image_splits(benchmark="imagenet_a", data_dir=trees)


class TestMissing:
    def test_no_such_set(self, trees):
        with pytest.raises(ValueError, match=r"no benchmark 'flowers'; there are caltech101, .*imagenet_r"):
            load_benchmark("flowers", trees)

    @pytest.mark.parametrize("part", ["", "images", "split_zhou_OxfordPets.json"])
    def test_the_part_is_named_and_where_it_comes_from(self, one_set, part):
        base = one_set("oxford_pets")
        missing = base / part
        shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
        message = rf"oxford_pets is not there: no '{missing}'; `hf-coop data get oxford_pets` fetches .*DATASETS.md"
        with pytest.raises(ValueError, match=message):
            load_benchmark("oxford_pets", base.parent)

    def test_imagenet_is_to_be_got_by_hand(self, tmp_path):
        with pytest.raises(ValueError, match=r"https://image-net.org and put .* into imagenet/images/train"):
            load_benchmark("imagenet", tmp_path)

    def test_a_missing_list(self, one_set):
        base = one_set("fgvc_aircraft")
        (base / "images_variant_val.txt").unlink()
        with pytest.raises(ValueError, match=r"cannot read '.*images_variant_val.txt'.*it comes with the set"):
            load_benchmark("fgvc_aircraft", base.parent)

    def test_states(self, one_set, tmp_path):
        base = one_set("dtd")
        one_set("eurosat").joinpath("split_zhou_EuroSAT.json").unlink()
        states = benchmark_states(tmp_path)
        assert list(states) == list(IMAGE_SETS)
        assert states["dtd"] == f"{base}: there"
        assert states["eurosat"] == f"{tmp_path / 'eurosat' / 'split_zhou_EuroSAT.json'}: not there"
        assert states["ucf101"] == f"{tmp_path / 'ucf101'}: not there"

    def test_where_the_data_folder_is(self, tmp_path, monkeypatch):
        monkeypatch.delenv("HF_COOP_DATA", raising=False)
        assert data_folder().name == "hf_coop_data"
        monkeypatch.setenv("HF_COOP_DATA", str(tmp_path))
        assert data_folder() == tmp_path
        assert data_folder("here") == Path("here")
        assert data_folder("~/data") == Path.home() / "data"


class TestBadSplitFiles:
    """Each is one clear error, before any image is read."""

    @pytest.fixture
    def pets(self, one_set) -> Path:
        return one_set("oxford_pets") / "split_zhou_OxfordPets.json"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda split: split["val"][3].__setitem__(0, "gone_1.jpg"), "images/gone_1.jpg', which does not exist"),
            (lambda split: split["val"][3].__setitem__(0, "gone/1.jpg"), "images/gone/1.jpg', which does not exist"),
            (lambda split: split["test"][0].__setitem__(0, "/etc/passwd"), "'/etc/passwd', which is not a path below"),
            (lambda split: split["test"][0].__setitem__(0, "../../x.jpg"), "'../../x.jpg', which is not a path below"),
            (lambda split: split["test"][0].__setitem__(0, "C:\\x.jpg"), "which is not a path below"),
            (
                lambda split: split["train"][0].__setitem__(2, "wolf"),
                "calls label . both '.*' and '.*'",
            ),
            (lambda split: split["train"].append(["a.jpg", 9, "wolf"]), "has 8 classes, but label 7 is none of them"),
            (lambda split: split["train"].append(["a.jpg", -1, "wolf"]), "has 8 classes, but label 7 is none of them"),
            (
                lambda split: split["train"].append(["a.jpg", "3", "wolf"]),
                r"not a path, a label .*\['a.jpg', '3', 'wolf'\]",
            ),
            (lambda split: split["train"].append(["a.jpg", 3]), "is no split file"),
            (lambda split: split.pop("val"), "is no split file.*KeyError.*'val'"),
            (lambda split: split.update(test=[]), "oxford_pets has no test images"),
        ],
    )
    def test_split_file(self, pets, change, message):
        split = json.loads(pets.read_text())
        change(split)
        pets.write_text(json.dumps(split))
        with pytest.raises(ValueError, match=message):
            load_benchmark("oxford_pets", pets.parents[1])

    @pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"train": 3, "val": [], "test": []}'])
    def test_no_split_file_at_all(self, pets, text):
        pets.write_text(text)
        with pytest.raises(ValueError, match=r"split_zhou_OxfordPets.json' is no split file, which holds lists of"):
            load_benchmark("oxford_pets", pets.parents[1])

    def test_an_unknown_variant(self, one_set):
        base = one_set("fgvc_aircraft")
        with (base / "images_variant_test.txt").open("a") as file:
            file.write("0034309 Zeppelin NT\n")
        with pytest.raises(ValueError, match=r"images_variant_test.txt': 'Zeppelin NT' of the line '0034309 Zepp"):
            load_benchmark("fgvc_aircraft", base.parent)


class TestAsImageSplits:
    """`load_image_splits(benchmark=…)`, which is what the scripts call."""

    def test_the_same_splits(self, trees):
        splits, expected = load_image_splits(benchmark="dtd", data_dir=trees), load_benchmark("dtd", trees)
        assert classnames_of(splits["train"]) == expected.classnames
        assert {name: rows(split, trees) for name, split in splits.items()} == {
            name: rows(split, trees) for name, split in expected.splits.items()
        }

    def test_imagenet_with_its_equal_names(self, trees):
        splits = few_shot_splits(load_image_splits(benchmark="imagenet", data_dir=trees), 2, seed=1)
        assert classnames_of(splits["train"]).count("missile") == 2
        assert len(splits["validation"]) == 36  # not sampled

    def test_other_names_and_broken_images(self, one_set, tmp_path, caplog):
        base = one_set("imagenet")
        next((base / "images" / "val").rglob("*.JPEG")).write_bytes(b"broken")
        names = tmp_path / "names.txt"
        names.write_text("\n".join(f"name {k}" for k in range(12)))
        splits = load_image_splits(
            benchmark="imagenet", data_dir=tmp_path, classnames_file=names, skip_broken_images=True
        )
        assert classnames_of(splits["validation"])[3] == "name 3"
        assert splits["validation"] is splits["test"]
        assert len(splits["test"]) == 35

    @pytest.mark.parametrize("other", ["train_dir", "dataset_name"])
    def test_not_beside_other_data(self, trees, other):
        with pytest.raises(ValueError, match=f"say where the images are, got {other} and benchmark"):
            load_image_splits(benchmark="dtd", data_dir=trees, **{other: str(trees)})

    def test_a_data_folder_without_a_benchmark(self, trees):
        with pytest.raises(ValueError, match="data_dir goes with benchmark"):
            load_image_splits(dataset_name="demo", data_dir=trees)


def test_published_classnames():
    assert {name: len(published_classnames(name)) for name in IMAGE_SETS} == {
        "caltech101": 100,
        "oxford_pets": 37,
        "stanford_cars": 196,
        "oxford_flowers": 102,
        "food101": 101,
        "fgvc_aircraft": 100,
        "sun397": 397,
        "dtd": 47,
        "eurosat": 10,
        "ucf101": 101,
        **dict.fromkeys(OF_IMAGENET, 1000),
    }
    assert hand_crafted_template(None) == "a photo of a {}."
