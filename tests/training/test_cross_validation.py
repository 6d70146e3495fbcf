"""Cross-validation over the shots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_coop import CoOpTrainingArguments, HFCoOp
from hf_coop.data import classnames_of, few_shot_splits, load_image_splits
from hf_coop.demo import DEMO_CLIP
from hf_coop.training import cross_validate


@pytest.fixture(scope="module")
def shots() -> Dataset:
    return few_shot_splits(load_image_splits(dataset_name="demo"), 8, seed=1)["train"]


@pytest.fixture
def model(shots: Dataset) -> HFCoOp:
    return HFCoOp.from_clip(DEMO_CLIP, classnames_of(shots))


def arguments(folder: Path, **options) -> CoOpTrainingArguments:
    return CoOpTrainingArguments(output_dir=str(folder / "out"), use_cpu=True, max_text_passes=20, **options)


@pytest.mark.parametrize("views", ["1", "2"])
def test_each_image_is_classified_once_and_nothing_is_kept(model, shots, tmp_path, views):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    found = cross_validate(model, arguments(tmp_path, image_views=views), shots, 2)
    assert torch.equal(torch.rand(1), expected)
    assert len(found["folds"]) == 2
    assert found["accuracy"] == pytest.approx(sum(found["folds"]) / 2)
    for accuracy in found["folds"]:  # of 40 images each
        assert 40 * accuracy == pytest.approx(round(40 * accuracy))
    assert (0.7 if views == "1" else 0.4) < found["accuracy"] < 1
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(model.peft_config) == [model.active_adapter] == ["default"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("folds", "message"), [(1, "must be 2 or more, got 1"), (9, "needs 9 images of each class")])
def test_too_few_folds_or_images(model, shots, tmp_path, folds, message):
    with pytest.raises(ValueError, match=message):
        cross_validate(model, arguments(tmp_path), shots, folds)
