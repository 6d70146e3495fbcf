"""What people hand to the trainer that it cannot take, each with what to give instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from ..data.checks import check_labelled_images
from ..modeling import HFCoOp
from .arguments import CoOpTrainingArguments


def check_parts(model: Any, args: Any, datasets: Mapping[str, Any], callbacks: Any) -> None:
    """Raise unless [`CoOpTrainer`] can work with these.

    Args:
        model, args, callbacks: as given.
        datasets (`Mapping[str, Any]`): by the names of the trainer's arguments.

    Raises:
        TypeError: one is of another kind: a plain `PeftModel`, `transformers.TrainingArguments`, or data sets or
            callbacks of other libraries.
        ValueError: the adapter was loaded for prediction, or a data set does not fit.
    """
    if not isinstance(model, HFCoOp):
        way = (
            "HFCoOp.from_clip(…) makes a fresh prompt, HFCoOp.from_pretrained(…, is_trainable=True) loads a saved one"
        )
        if isinstance(model, PeftModel):
            way = "HFCoOp(clip, config) instead of get_peft_model(clip, config); " + way
        raise TypeError(f"model is of type {type(model).__name__}, and CoOpTrainer trains an HFCoOp: {way}")
    if args is not None and not isinstance(args, CoOpTrainingArguments):
        raise TypeError(
            f"args is of type {type(args).__name__}: give CoOpTrainingArguments(output_dir=…), whose options have the "
            "names of transformers.TrainingArguments"
        )
    for name, dataset in datasets.items():
        if dataset is not None:
            _check_kind(dataset, name)
            check_labelled_images(dataset, model.classnames, name)
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [None]:
        if isinstance(callback, type) or not callable(callback):
            raise TypeError(
                f"callbacks={callbacks!r:.80}: give a list of functions, which are called as callback(trainer, row) "
                "after each epoch; callbacks of transformers or other libraries belong to their own trainers"
            )
    learner = model.prompt_layer.active_learner
    if datasets.get("train_dataset") is not None and not any(p.requires_grad for p in learner.parameters()):
        raise ValueError(
            f"adapter {model.active_adapter!r} was loaded for prediction and is frozen: load it by "
            "from_pretrained(…, is_trainable=True) or load_adapter(…, is_trainable=True) to go on training it"
        )


def _check_kind(dataset: Any, name: str) -> None:
    from datasets import Dataset, DatasetDict

    if isinstance(dataset, DatasetDict):
        raise TypeError(f"{name} is a DatasetDict of splits ({', '.join(dataset)}): give one of them")
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"{name} is of type {type(dataset).__name__}: give a datasets.Dataset with the columns 'image' and "
            "'label'. hf_coop.data.load_image_folder(folder) makes one of class folders, and "
            'datasets.Dataset.from_dict({"image": [PIL images], "label": [numbers]}) of lists'
        )
