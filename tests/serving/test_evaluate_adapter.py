"""`hf-coop evaluate`: a saved prompt on labelled images, whose classes are matched by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import PARITY
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from typer.testing import CliRunner

from hf_coop import HFCoOp
from hf_coop.data import classnames_of, load_benchmark, match_classes
from hf_coop.demo import CLASSNAMES, load_digits_dataset
from hf_coop_cli import app

NAMES = ["red_bus", "Tiger", "cat"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    HFCoOp.from_clip(PARITY, NAMES, n_ctx=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the three classes, in another order and spelling, and one that the prompt does not have."""
    root, rng = tmp_path_factory.mktemp("test"), np.random.default_rng(0)
    for name, count in (("cat", 5), ("dodo", 2), ("red bus", 3)):
        (root / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_a_folder(adapter, folder, tmp_path, caplog):
    output = tmp_path / "new" / "metrics.json"
    done = run("evaluate", adapter, "--test_dir", folder, "--output", output, "--use_cpu")
    assert done.exit_code == 0, done.output
    found = json.loads(output.read_text())
    assert found["zero_shot_template"] == "a photo of a {}."
    model = HFCoOp.from_pretrained(adapter)
    truth = dict.fromkeys(folder.glob("red bus/*.png"), "red_bus") | dict.fromkeys(folder.glob("cat/*.png"), "cat")
    guesses = [row[0]["label"] for row in model.predict(list(truth), top_k=1)]
    right = [guess == name for guess, name in zip(guesses, truth.values(), strict=True)]
    assert found["learned"]["accuracy"] == pytest.approx(np.mean(right))
    assert found["learned"]["per_class_accuracy"].keys() == {"red_bus", "cat"}
    assert found["zero_shot"]["num_samples"] == found["learned"]["num_samples"] == 8
    assert f"{found['learned']['accuracy']:.2%}" in done.stdout
    assert "8 images of 2 classes; zero-shot: 'a photo of a {}.'" in done.stdout
    assert "2 of 10 images are left out, of classes that the prompt does not have: dodo." in caplog.text


def test_a_data_set_and_its_options(adapter, folder, tmp_path):
    rows = {"photo": [str(path) for path in sorted(folder.rglob("*.png"))]}
    rows["kind"] = [Path(path).parent.name for path in rows["photo"]]
    DatasetDict({"mine": Dataset.from_dict(rows)}).save_to_disk(tmp_path / "set")
    options = ["--dataset_name", tmp_path / "set", "--use_cpu"]
    assert "no split 'test'; it has mine" in run("evaluate", adapter, *options).output
    options += ["--test_split", "mine", "--image_column_name", "photo", "--label_column_name", "kind"]
    done = run("evaluate", adapter, *options, "--zero_shot_template", "an image of a {}.")
    assert done.exit_code == 0, done.output
    assert "8 images of 2 classes; zero-shot: 'an image of a {}.'" in done.stdout


def test_a_benchmark(trees, tmp_path):
    """Of test images alone, and with two classes called "missile"."""
    benchmark = load_benchmark("imagenet_r", trees)
    HFCoOp.from_clip(PARITY, benchmark.classnames, n_ctx=2).save_pretrained(tmp_path)
    done = run("evaluate", tmp_path, "--benchmark", "imagenet_r", "--data_dir", trees, "--use_cpu")
    assert done.exit_code == 0, done.output
    test = benchmark.splits["test"]
    assert f"{len(test)} images of {len(set(test['label'][:]))} classes" in done.stdout


def test_a_prompt_in_front_of_other_names(adapter, tmp_path):
    options = ["--dataset_name", "demo", "--set_classnames", "--use_cpu", "--output", tmp_path / "metrics.json"]
    done = run("evaluate", adapter, *options)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert list(found["learned"]["per_class_accuracy"]) == list(CLASSNAMES)
    model, test = HFCoOp.from_pretrained(adapter), load_digits_dataset()["test"]
    model.set_classnames(CLASSNAMES)
    guesses = [row[0]["label"] for row in model.predict(test, top_k=1)]
    right = [guess == CLASSNAMES[label] for guess, label in zip(guesses, test["label"][:], strict=True)]
    assert found["learned"]["accuracy"] == pytest.approx(np.mean(right), abs=2 / 900)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say where the images are, got nothing: test_dir"),
        (["--test_dir", "x", "--dataset_name", "demo"], "got test_dir and dataset_name"),
        (["--dataset_name", "demo"], "the images have none of the prompt's classes, but zero, one"),
        (["--dataset_name", "demo", "--data_dir", "x"], "data_dir goes with benchmark"),
        (["--test_dir", "x", "--test_split", "test"], "test_split goes with dataset_name"),
        (["--test_dir", "nowhere"], "no such folder: 'nowhere'"),
    ],
)
def test_mistakes_are_told_on_one_line(adapter, options, message):
    done = run("evaluate", adapter, *options)
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert len(done.output.splitlines()) == 1
    assert message in done.output


def test_metrics_that_cannot_be_written(adapter, folder, tmp_path):
    (tmp_path / "file").write_text("kept")
    done = run("evaluate", adapter, "--test_dir", folder, "--output", tmp_path / "file" / "metrics.json", "--use_cpu")
    assert done.exit_code == 1
    assert f"error: cannot write '{tmp_path / 'file' / 'metrics.json'}'" in done.output
    assert (tmp_path / "file").read_text() == "kept"


class TestMatching:
    """By one rule wherever a prompt meets labelled images: `hf-coop evaluate` and `hf-coop explain`."""

    def rows(self, labels: list[int], *names: str) -> Dataset:
        features = Features({"image": Value("string"), "label": ClassLabel(names=list(names))})
        images = [str(number) for number in range(len(labels))]
        return Dataset.from_dict({"image": images, "label": labels}, features=features)

    def test_by_name_case_and_underscores(self, caplog):
        matched = match_classes(self.rows([0, 1, 1], "TIGER", "red bus"), NAMES)
        assert matched["label"][:] == [1, 0, 0]
        assert classnames_of(matched) == NAMES
        assert not caplog.records

    def test_equal_names_in_their_order(self):
        found = match_classes(self.rows([0, 1, 2], "missile", "missile ", "cat"), ["cat", "missile", "missile"])
        assert found["label"][:] == [1, 2, 0]

    def test_classes_without_images_do_not_count(self, caplog):
        assert match_classes(self.rows([1], "unicorn", "cat"), NAMES)["label"][:] == [2]
        assert not caplog.records

    @pytest.mark.parametrize("label", [-1, None])
    def test_images_without_labels_are_of_no_class(self, label):
        """With the label -1, which unlabelled test splits on the Hub have, they were taken for the last class."""
        for names in (["unicorn", "cat"], NAMES):
            with pytest.raises(ValueError, match=f"image 1 has the label {label}, which is none of the"):
                match_classes(self.rows([1, label], *names), NAMES)

    def test_images_of_other_classes_are_left_out_and_told(self, caplog):
        matched = match_classes(self.rows([0, 2, 1, 0], "unicorn", "Cat", "dodo"), NAMES)
        assert (matched["image"][:], matched["label"][:]) == (["2"], [2])
        assert classnames_of(matched) == NAMES
        assert "3 of 4 images are left out, of classes that the prompt does not have: unicorn, dodo. " in caplog.text
        assert "The prompt has red_bus, Tiger, cat. Rename folders, or evaluate with classnames_file" in caplog.text
        with pytest.raises(ValueError, match=r"the images have none of the prompt's classes, but unicorn, dodo\. The"):
            match_classes(self.rows([0, 2], "unicorn", "Cat", "dodo"), NAMES)
