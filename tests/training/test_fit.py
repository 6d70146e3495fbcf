"""`hf_coop.fit`: from folders or data sets to a trained prompt, by what `hf-coop train` does."""

from __future__ import annotations

import runpy
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PARITY
from datasets import Dataset, DatasetDict, Features, Value, are_progress_bars_disabled
from datasets import Image as ImageFeature
from PIL import Image

import hf_coop
from hf_coop import CoOpTrainingArguments, HFCoOp
from hf_coop.data import load_image_splits
from hf_coop.training import learn_prompt

NAMES = ["cat", "red_bus", "tiger"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` with five and `test` with four images of three classes of flat colours with noise."""
    root, rng = tmp_path_factory.mktemp("flowers"), np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 4)):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (36, 40, 3))
                pixels[..., label] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def fitted(folders: Path) -> HFCoOp:
    return hf_coop.fit(folders / "train", PARITY, test=folders / "test", num_shots=4)


def context(model: HFCoOp) -> torch.Tensor:
    return model.prompt_layer.active_learner.ctx


def test_folders(fitted, folders):
    assert isinstance(fitted, HFCoOp)
    assert not fitted.training
    assert fitted.classnames == NAMES
    details = fitted.card_details
    assert details.dataset_name == folders.name  # and not "train"
    assert details.learned["accuracy"] > max(0.8, details.zero_shot["accuracy"])
    assert details.zero_shot_template == "a photo of a {}."
    assert details.training["recipe"] == "fast"
    assert details.figures.images == "12 test images"
    assert fitted.predict(folders / "test" / "tiger" / "0.png", top_k=1)[0]["label"] == "tiger"


def test_the_command_learns_the_same(fitted, folders, tmp_path, monkeypatch):
    script = Path(__file__).parents[2] / "examples" / "train.py"
    options = ["--model_name_or_path", PARITY, "--train_dir", folders / "train", "--test_dir", folders / "test"]
    options += ["--num_shots", 4, "--output_dir", tmp_path / "out", "--save_strategy", "no"]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, options)])
    runpy.run_path(str(script), run_name="__main__")
    saved = HFCoOp.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(context(saved), context(fitted), rtol=1e-5, atol=1e-5)
    assert saved.card_details == fitted.card_details


def test_data_sets_in_memory(fitted, folders):
    splits = load_image_splits(folders / "train", folders / "test")
    named = DatasetDict({name: split.rename_column("label", "kind") for name, split in splits.items()})
    with pytest.raises(ValueError, match="no column 'label'"):
        hf_coop.fit(named, PARITY)
    for given in ((splits, PARITY), (splits["train"], PARITY, splits["test"])):
        model = hf_coop.fit(*given, num_shots=4)
        torch.testing.assert_close(context(model), context(fitted))
        assert model.card_details.learned == fitted.card_details.learned
        assert model.card_details.dataset_name is None
    alone = hf_coop.fit(splits["train"], PARITY, num_shots=4, n_ctx=2)
    assert alone.card_details.learned == {}
    assert alone.card_details.figures is None
    assert context(alone).shape[0] == 2


def test_figures_of_validation_images_are_called_so(folders, tmp_path):
    """Validation images beside the training images, and a data set that has them in the place of test images."""
    images = load_image_splits(folders / "train", folders / "test")
    args = CoOpTrainingArguments(output_dir=str(tmp_path / "run"), save_strategy="no", max_text_passes=2)
    model = HFCoOp.from_clip(PARITY, NAMES, n_ctx=2)
    splits = {"train": images["train"], "validation": images["test"]}
    learn_prompt(model, args, splits, "a photo of a {}.")
    assert model.card_details.learned == {}
    model.save_pretrained(tmp_path / "validated")
    card = (tmp_path / "validated" / "README.md").read_text()
    assert "on 12 validation images." in card
    assert "## Results" not in card
    test = Dataset(images["test"].data, split="validation")
    args = replace(args, overwrite_output_dir=True)
    learn_prompt(model, args, {"train": images["train"], "test": test}, "a photo of a {}.")
    assert (model.card_details.split, model.card_details.figures.images) == ("validation", "12 validation images")
    learn_prompt(model, args, {**splits, "test": images["train"]}, "a photo of a {}.")
    assert model.card_details.figures.images == "15 test images"


def test_labels_that_are_words(folders):
    photos = sorted((folders / "train").rglob("*.png"))
    features = Features({"image": ImageFeature(), "label": Value("string")})
    words = Dataset.from_dict({"image": list(map(str, photos)), "label": [p.parent.name for p in photos]}, features)
    assert hf_coop.fit(words, PARITY, num_shots=1).classnames == NAMES


def test_benchmarks_and_the_embedded_digits(trees, monkeypatch):
    monkeypatch.setenv("HF_COOP_DATA", str(trees))
    args = CoOpTrainingArguments(output_dir="unused", max_text_passes=2, save_strategy="no")
    monkeypatch.chdir(trees.parent)
    flowers = hf_coop.fit("oxford_flowers", PARITY, num_shots=1, args=args)
    assert flowers.card_details.zero_shot_template == "a photo of a {}, a type of flower."
    assert flowers.card_details.dataset_name == "oxford_flowers"
    digits = hf_coop.fit("demo", "demo", num_shots=16)
    assert digits.card_details.learned["accuracy"] > 0.9
    assert digits.card_details.split == "test"


def test_a_notebook_shows_no_noise(folders, capfd):
    """No progress bars that nobody has asked for, no warnings of other libraries."""
    photos = sorted((folders / "train").rglob("*.png"))
    features = Features({"image": ImageFeature(), "label": Value("string")})
    rows = {"image": [*map(str, photos)] * 2, "label": [path.parent.name for path in photos] * 2}
    selected = Dataset.from_dict(rows, features).select(range(0, 2 * len(photos), 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf_coop.fit(selected, PARITY, num_shots=1)
    assert "Flattening" not in capfd.readouterr().err
    assert not are_progress_bars_disabled()


def test_nothing_is_left_behind(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    hf_coop.fit(folders / "train", PARITY, num_shots=1)
    hf_coop.fit(folders / "train", PARITY, num_shots=1)  # as a notebook's cell that is run again
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert not list((tmp_path / "tmp").glob("hf-coop-*"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a.png"], PARITY), TypeError, r"train is \['a.png'\], of type list: give a folder"),
        (("demo", PARITY, "somewhere"), TypeError, "data sets and benchmarks bring their own test split"),
        (("/nowhere/at/all", PARITY), ValueError, "no such file or folder: '/nowhere/at/all'"),
        (("dtd", PARITY), ValueError, "dtd is not there: no "),
    ],
)
def test_what_is_no_source(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_COOP_DATA", str(tmp_path))
    with pytest.raises(error, match=message):
        hf_coop.fit(*arguments)


def test_options_are_checked_before_images_are_read(folders):
    for options, message in (
        ({"method": "maple"}, "method must be one of"),
        ({"zero_shot_template": "a photo"}, "must have {}"),
        ({"num_shots": -1}, "num_shots must be 0"),
        ({"n_ctx": 0}, "n_ctx must be a whole number from 1"),
        ({"n_words": 3}, "n_words"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            hf_coop.fit(folders / "train", PARITY, **options)
