"""What people hand to `CoOpTrainer` by mistake: each gets an error that says what to give instead."""

from __future__ import annotations

import pytest
import torch
from conftest import CLASSNAMES, PARITY
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from peft import get_peft_model
from torch.utils.data import TensorDataset
from transformers import CLIPModel, TrainerCallback, TrainingArguments

from hf_coop import CoOpConfig, CoOpTrainer, CoOpTrainingArguments, HFCoOp

WIDTH = 48


@pytest.fixture(scope="module")
def model() -> HFCoOp:
    return HFCoOp.from_clip(PARITY, CLASSNAMES, n_ctx=2)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    features = {"image_embeds": List(Value("float32"), length=WIDTH), "label": ClassLabel(names=CLASSNAMES)}
    rows = {"image_embeds": torch.randn(10, WIDTH).tolist(), "label": [k % 5 for k in range(10)]}
    return Dataset.from_dict(rows, features=Features(features))


def test_models(dataset, tmp_path):
    clip = CLIPModel.from_pretrained(PARITY)
    with pytest.raises(TypeError, match=r"type CLIPModel, and CoOpTrainer trains an HFCoOp: HFCoOp.from_clip"):
        CoOpTrainer(clip, None, dataset)
    plain = get_peft_model(clip, CoOpConfig(classnames=CLASSNAMES, n_ctx=2, tokenizer_name_or_path=str(PARITY)))
    with pytest.raises(TypeError, match=r"type PeftModel, .*HFCoOp\(clip, config\) instead of get_peft_model"):
        CoOpTrainer(plain, None, dataset)


def test_an_adapter_loaded_for_prediction(model, dataset, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = HFCoOp.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'default' was loaded for prediction .* is_trainable=True"):
        CoOpTrainer(loaded, CoOpTrainingArguments(use_cpu=True), dataset)
    args = CoOpTrainingArguments(use_cpu=True)
    assert "accuracy" in CoOpTrainer(loaded, args, eval_dataset=dataset).evaluate()  # which needs no training
    CoOpTrainer(HFCoOp.from_pretrained(tmp_path, is_trainable=True), args, dataset)


def test_arguments(model, dataset, tmp_path):
    with pytest.raises(TypeError, match=r"type TrainingArguments: give CoOpTrainingArguments"):
        CoOpTrainer(model, TrainingArguments(output_dir=str(tmp_path)), dataset)


def test_data_sets(model, dataset):
    torch_dataset = TensorDataset(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(TypeError, match=r"train_dataset is of type TensorDataset: give a datasets.Dataset"):
        CoOpTrainer(model, None, torch_dataset)
    with pytest.raises(TypeError, match=r"eval_dataset is of type list"):
        CoOpTrainer(model, None, dataset, [1, 2])
    with pytest.raises(TypeError, match=r"train_dataset is of type IterableDataset"):
        CoOpTrainer(model, None, dataset.to_iterable_dataset())
    with pytest.raises(TypeError, match=r"train_dataset is a DatasetDict of splits \(train\): give one of them"):
        CoOpTrainer(model, None, DatasetDict(train=dataset))


@pytest.mark.parametrize("callbacks", [[TrainerCallback()], [TrainerCallback], TrainerCallback(), print])
def test_callbacks(model, dataset, callbacks):
    with pytest.raises(TypeError, match=r"give a list of functions, which are called as callback\(trainer, row\)"):
        CoOpTrainer(model, None, dataset, callbacks=callbacks)


def test_a_cell_that_is_run_again_is_told_how(model, dataset, tmp_path):
    args = CoOpTrainingArguments(output_dir=str(tmp_path), max_text_passes=2, use_cpu=True)
    CoOpTrainer(model, args, dataset).train()
    with pytest.raises(ValueError, match=r"holds another run .* overwrite_output_dir=True"):
        CoOpTrainer(model, args, dataset).train()
    again = CoOpTrainingArguments(output_dir=str(tmp_path), overwrite_output_dir=True, max_text_passes=2, use_cpu=True)
    CoOpTrainer(model, again, dataset).train()
