"""`BestPrompt`: which epoch to keep and when to end, by validation images; the test images have no say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from ..modeling import HFCoOp
from .arguments import CoOpTrainingArguments

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX, WEIGHTS = "best.", "best.weights."  # of its tensors in a checkpoint


def check_validation(args: CoOpTrainingArguments, splits: Mapping[str, Dataset | None]) -> None:
    """Raise `ValueError` where `args` ask for validation images and there are none, or they are the test images.

    Args:
        args ([`CoOpTrainingArguments`]): `eval_strategy`, `load_best_model_at_end`, `early_stopping_patience`.
        splits: with "validation" and "test", where there are any.
    """
    validation = splits.get("validation")
    if args.eval_strategy != "no" and validation is None:
        raise ValueError(
            f"eval_strategy={args.eval_strategy!r} has no validation images to measure: give some (eval_dataset; "
            "validation_dir, or validation_split of a data set), or leave it out"
        )
    if args.selection and validation is splits.get("test"):
        name, value = next(iter(args.selection.items()))
        raise ValueError(
            f"{name}={value!r} would choose by the test images, which are this set's validation images too, and their "
            "accuracy would say nothing any more: leave it out, or give other validation images"
        )


class BestPrompt:
    """The prompt of the epoch with the highest validation accuracy, the first of equal ones.

    Args:
        args ([`CoOpTrainingArguments`]): `load_best_model_at_end` and `early_stopping_patience`, which mean what they
            mean in transformers.
        epoch (`int`): epochs that are done.
        tensors: `state_tensors` of the checkpoint that the run goes on from; without any, it goes on from nothing.
    """

    def __init__(
        self, args: CoOpTrainingArguments, epoch: int = 0, tensors: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        tensors, self.args = tensors or {}, args
        self.epoch = int(tensors.get(f"{PREFIX}epoch", epoch))
        self.accuracy = float(tensors.get(f"{PREFIX}accuracy", -1))
        self.weights = {
            name.removeprefix(WEIGHTS): value for name, value in tensors.items() if name.startswith(WEIGHTS)
        }

    def see(self, model: HFCoOp, row: Mapping[str, Any]) -> None:
        """Keep the prompt that `model` has after the epoch of `row`, if none was better."""
        if self.args.selection and row["eval_accuracy"] > self.accuracy:
            self.epoch, self.accuracy = row["epoch"], row["eval_accuracy"]
            self.weights = {name: value.cpu().clone() for name, value in get_peft_model_state_dict(model).items()}

    def is_out_of_patience(self, epoch: int) -> bool:
        """Whether `early_stopping_patience` epochs, of `epoch` that are done, have passed without a better one."""
        patience = self.args.early_stopping_patience
        return patience is not None and epoch - self.epoch >= patience

    def restore(self, model: HFCoOp) -> dict[str, Any]:
        """Put the best prompt into `model` if that was asked for; gives what to report."""
        if not self.args.selection:
            return {}
        if self.args.load_best_model_at_end and self.weights:
            set_peft_model_state_dict(model, self.weights)
        return {"best_epoch": self.epoch, "best_eval_accuracy": self.accuracy}

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it."""
        if not self.weights:
            return {}
        return {
            f"{PREFIX}epoch": torch.tensor(self.epoch),
            f"{PREFIX}accuracy": torch.tensor(self.accuracy, dtype=torch.float64),
            **{f"{WEIGHTS}{name}": value for name, value in self.weights.items()},
        }
