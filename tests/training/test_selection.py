"""The best epoch and early stopping, by validation images."""

from __future__ import annotations

import re

import pytest
import torch
from test_trainer import arguments, context, embeds_dataset, image_dataset, make_model

from hf_coop import CoOpTrainer, CoOpTrainingArguments
from hf_coop.training.checkpoints import list_checkpoints
from hf_coop.training.selection import BestPrompt, check_validation

STEPS = {"num_train_epochs": 12, "learning_rate": 0.05, "warmup_epochs": 0}
LBFGS = {
    **dict.fromkeys(("num_train_epochs", "per_device_train_batch_size", "learning_rate")),
    "optim": "lbfgs",
    "max_text_passes": 16,
}


def trained(folder, resume=None, **options):
    """Random images, so that validation accuracy goes up and down; with a copy of the prompt after each epoch."""
    args = arguments(folder, eval_strategy="epoch", **options)
    contexts = []
    trainer = CoOpTrainer(
        make_model(seed=9 if resume else 0),
        args,
        embeds_dataset(),
        embeds_dataset(30, seed=3),
        callbacks=[lambda trainer, row: contexts.append(context(trainer))],
    )
    return trainer, contexts, trainer.train(resume).metrics


@pytest.mark.parametrize("recipe", [STEPS, LBFGS], ids=["steps", "lbfgs"])
def test_the_best_epoch_is_kept(tmp_path, recipe):
    trainer, contexts, metrics = trained(tmp_path, load_best_model_at_end=True, **recipe)
    accuracies = [row["eval_accuracy"] for row in trainer.state.log_history]
    best = accuracies.index(max(accuracies))
    assert 0 < best < len(accuracies) - 1
    assert torch.equal(context(trainer), contexts[best])
    assert not torch.equal(context(trainer), contexts[-1])
    assert trainer.evaluate()["accuracy"] == accuracies[best]
    assert (metrics["best_epoch"], metrics["best_eval_accuracy"]) == (best + 1, accuracies[best])
    assert trainer.model.card_details.training["load_best_model_at_end"] is True


@pytest.mark.parametrize("recipe", [STEPS, LBFGS], ids=["steps", "lbfgs"])
def test_early_stopping(tmp_path, recipe):
    whole, *_ = trained(tmp_path / "whole", **recipe)
    accuracies = [row["eval_accuracy"] for row in whole.state.log_history]
    best, expected = -1.0, 0
    for epoch, accuracy in enumerate(accuracies, start=1):
        best, expected = (accuracy, epoch) if accuracy > best else (best, expected)
        if epoch - expected >= 2:
            break
    assert epoch < len(accuracies), "the data must make it stop early"
    trainer, contexts, metrics = trained(tmp_path / "stopped", early_stopping_patience=2, **recipe)
    assert len(trainer.state.log_history) == epoch
    assert metrics["best_epoch"] == expected
    assert metrics.get("train_ended") in (None, "no higher validation accuracy in 2 iterations")
    assert torch.equal(context(trainer), contexts[-1])  # the best one is kept only if that is asked for too


def test_other_patience_leaves_the_loss_as_it_is(tmp_path):
    """L-BFGS forgot what it had found of it, as if the loss were another one."""
    whole, contexts, _ = trained(tmp_path / "whole", early_stopping_patience=9, **LBFGS)
    stopped, *_ = trained(tmp_path / "stopped", early_stopping_patience=2, **LBFGS)
    assert stopped.state.global_step < whole.state.global_step
    again, *_ = trained(
        tmp_path / "stopped", list_checkpoints(tmp_path / "stopped")[-1], early_stopping_patience=9, **LBFGS
    )
    assert again.state.log_history == whole.state.log_history
    assert torch.equal(context(again), contexts[-1])


def test_resumed_it_chooses_the_same(tmp_path):
    options = {**STEPS, "load_best_model_at_end": True, "early_stopping_patience": 4, "save_total_limit": None}
    whole, _, metrics = trained(tmp_path / "whole", **options)
    checkpoints = list_checkpoints(tmp_path / "whole")
    assert len(checkpoints) > 4
    for checkpoint in (checkpoints[metrics["best_epoch"] - 1], checkpoints[-2], checkpoints[-1]):
        again, _, found = trained(tmp_path / "again", checkpoint, overwrite_output_dir=True, **options)
        assert torch.equal(context(again), context(whole))
        assert {k: found[k] for k in ("best_epoch", "best_eval_accuracy")} == {
            k: metrics[k] for k in ("best_epoch", "best_eval_accuracy")
        }
        assert again.state.log_history == whole.state.log_history


def test_a_run_without_selection_is_resumed_with_it(tmp_path):
    trained(tmp_path, **{**STEPS, "num_train_epochs": 3})
    options = {**STEPS, "num_train_epochs": 6, "load_best_model_at_end": True, "early_stopping_patience": 2}
    trainer, _, metrics = trained(tmp_path, True, **options)
    assert metrics["best_epoch"] > 3
    assert len(trainer.state.log_history) > 3


@pytest.mark.parametrize("options", [{"load_best_model_at_end": True}, {"early_stopping_patience": 3}])
def test_both_need_validation(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} goes by the validation accuracy: give eval_strategy='epoch'"):
        CoOpTrainingArguments(**options)
    with pytest.raises(ValueError, match="early_stopping_patience must be 1 or more, got 0"):
        CoOpTrainingArguments(eval_strategy="epoch", early_stopping_patience=0)


def test_no_validation_images(tmp_path):
    with pytest.raises(ValueError, match="eval_strategy='epoch' has no validation images to measure"):
        CoOpTrainer(make_model(), arguments(tmp_path, eval_strategy="epoch"), image_dataset())


def test_test_images_are_not_chosen_by():
    args = CoOpTrainingArguments(eval_strategy="epoch", load_best_model_at_end=True)
    images, others = image_dataset(), image_dataset()
    check_validation(args, {"validation": others, "test": images})
    check_validation(CoOpTrainingArguments(eval_strategy="epoch"), {"validation": images, "test": images})
    with pytest.raises(ValueError, match=re.escape("load_best_model_at_end=True would choose by the test images")):
        check_validation(args, {"validation": images, "test": images})


def test_the_first_of_equal_epochs():
    best, model = BestPrompt(CoOpTrainingArguments(eval_strategy="epoch", early_stopping_patience=2)), make_model()
    for epoch, accuracy in enumerate((0.0, 0.5, 0.5, 0.4), start=1):
        best.see(model, {"epoch": epoch, "eval_accuracy": accuracy})
    assert best.epoch == 2
    assert [best.is_out_of_patience(epoch) for epoch in (3, 4)] == [False, True]
