"""What a few-shot set is worth where there are no test images: cross-validation over the shots."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from ..data.few_shot import class_counts
from ..errors import some
from .arguments import CoOpTrainingArguments
from .run import PromptRun
from .trainer import CoOpTrainer

if TYPE_CHECKING:
    from datasets import Dataset

    from ..modeling import HFCoOp

FOLD = "fold"  # the adapter that a fold learns


def check_folds(dataset: Dataset, folds: int) -> None:
    """Raise `ValueError` unless each class has an image for each of at least two folds."""
    if folds < 2:
        raise ValueError(f"cv_folds must be 2 or more, got {folds}")
    if few := [f"{name} ({count})" for name, count in class_counts(dataset).items() if count < folds]:
        raise ValueError(f"cv_folds={folds} needs {folds} images of each class; these have fewer: {some(few)}")


def cross_validate(model: HFCoOp, args: CoOpTrainingArguments, dataset: Dataset, folds: int) -> dict[str, Any]:
    """Accuracy on images that were not learned from: each fold is classified by a prompt learned from the others.

    The folds are stratified and drawn by `args.seed`. Nothing is kept: the model's own prompt, the random state and
    `args.output_dir` stay as they are.

    Args:
        model ([`HFCoOp`]): gives the CLIP and the config of the prompts.
        args ([`CoOpTrainingArguments`]): how each prompt is trained.
        dataset (`datasets.Dataset`): the few-shot set, with columns `image` (or `image_embeds`) and `label`.
        folds (`int`): how many, from 2 to the number of images of the smallest class.

    Returns:
        `accuracy` and `std`, mean and standard deviation over the folds, and `folds`, the accuracy on each.

    Raises:
        ValueError: a class has too few images.
    """
    from sklearn.model_selection import StratifiedKFold

    check_folds(dataset, folds)
    labels, before, accuracies = dataset["label"][:], model.active_adapter, []
    splitter = StratifiedKFold(folds, shuffle=True, random_state=args.seed)
    with TemporaryDirectory() as scratch, torch.random.fork_rng():
        if args.num_views == 1:  # one pass of the image tower for all folds
            dataset = _with_features(dataset, PromptRun(model, args).image_embeds(dataset)[:, 0])
        for number, (learned, held) in enumerate(splitter.split(labels, labels)):
            own = replace(
                args,
                output_dir=os.path.join(scratch, str(number)),
                save_strategy="no",
                eval_strategy="no",
                load_best_model_at_end=False,
                early_stopping_patience=None,
                resume_from_checkpoint=None,
                report_to=["none"],
            )
            torch.manual_seed(args.seed)
            model.add_adapter(FOLD, copy.deepcopy(model.peft_config[before]))
            model.set_adapter(FOLD)
            try:
                trainer = CoOpTrainer(model, own, dataset.select(learned))
                trainer.train()
                accuracies.append(trainer.evaluate(dataset.select(held))["accuracy"])
            finally:
                model.set_adapter(before)
                model.delete_adapter(FOLD)
    return {"accuracy": fmean(accuracies), "std": pstdev(accuracies), "folds": accuracies}


def _with_features(dataset: Dataset, embeds: torch.Tensor) -> Dataset:
    """The data set with image features `(N, D)` in the place of its images."""
    from datasets import Dataset, Features, List, Value

    features = {"image_embeds": List(Value("float32"), length=embeds.shape[1]), "label": dataset.features["label"]}
    columns = {"image_embeds": embeds.float().numpy(), "label": dataset["label"][:]}
    return Dataset.from_dict(columns, features=Features(features))
