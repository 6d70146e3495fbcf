"""`CoOpTrainer`: the training loop of learned prompts, on one process or several."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast
from transformers.trainer_utils import TrainOutput

from ..data.features import CachedImages, FreshCrops, weights_fingerprint
from ..modeling import HFCoOp
from .arguments import LBFGS, CoOpTrainingArguments
from .checkpoints import (
    TrainerState,
    changed_arguments,
    check_output_dir,
    lies_in,
    list_checkpoints,
    load_checkpoint,
    naming_checkpoint,
    random_states,
    remove_checkpoints,
    save_checkpoint,
    set_random_states,
)
from .gradients import BatchGradients
from .lbfgs import FullBatchLBFGS
from .misuse import check_parts
from .optimizers import make_optimizer
from .processes import any_process, make_accelerator, own_folder, print_processes, trackers
from .progress import TrainingProgress
from .recipes import decisive_arguments, fill_in
from .run import PromptRun
from .selection import BestPrompt, check_validation
from .signals import stop_on_signal

if TYPE_CHECKING:
    from datasets import Dataset

Batch = Sequence[int]
STOP_CHECK_STEPS = 10  # processes agree on whether to stop at every tenth update


class CoOpTrainer(PromptRun):
    """Trains the prompt of an [`HFCoOp`] on labelled images (CoOp, arXiv 2109.01134, section 4.1).

    The frozen image tower encodes each image (view) once, so a step costs the text side alone. The order of images is
    a pure function of seed and epoch, and every image weighs the same however batches fall on processes: with the same
    global batch, any number of processes computes the same, and a resumed run ends with the same bytes.

    Args:
        model ([`HFCoOp`]): what to train.
        args ([`CoOpTrainingArguments`], *optional*): how.
        train_dataset, eval_dataset (`datasets.Dataset`, *optional*): with columns `image` (or `image_embeds`) and
            `label`.
        callbacks (`Sequence[Callable]`): called as `callback(trainer, row)` in every process after each epoch, with
            the row of `trainer.state.log_history`.

    Attributes:
        state ([`TrainerState`]): position and measurements, of the last `train()`.

    Raises:
        TypeError: model, arguments, data sets or callbacks are of another kind.
        ValueError: the adapter was loaded for prediction, a data set lacks a column, its labels do not fit the model's
            classes, there are no validation images to measure by, or a template that the method needs cannot be
            encoded.
    """

    def __init__(
        self,
        model: HFCoOp,
        args: CoOpTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        callbacks: Sequence[Callable[[CoOpTrainer, dict[str, Any]], None]] = (),
    ) -> None:
        check_parts(model, args, {"train_dataset": train_dataset, "eval_dataset": eval_dataset}, callbacks)
        args = args or CoOpTrainingArguments()
        shots = max(Counter(train_dataset["label"][:]).values(), default=0) if train_dataset is not None else 0
        args = fill_in(args, model.prompt_config, shots)
        if train_dataset is not None:
            check_validation(args, {"validation": eval_dataset})
        self.train_dataset, self.callbacks = train_dataset, callbacks
        if train_dataset is not None and args.num_views is None and "image" not in train_dataset.column_names:
            raise ValueError("image_views='online' makes crops of images, but train_dataset has image_embeds alone")
        if args.learn_temperature and not model.prompt_config.learn_temperature:
            model.prompt_layer.active_learner.learn_temperature(model.clip)
        super().__init__(model, args, eval_dataset)
        anchor_template = args.anchor_template if args.anchor_weight else None
        for template in filter(None, (model.prompt_config.template, anchor_template)):
            if train_dataset is not None:
                model.template_embeddings(template)  # what is wrong with it is known before any work
        self.state = TrainerState()

    def train(self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None) -> TrainOutput:
        """Train to the end; the model then holds the learned prompt.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the newest in `output_dir`, from the beginning if
                there is none. Default: what the arguments say.

        Returns:
            `TrainOutput` with the number of updates, the mean loss of the last epoch, and `metrics`.

        Raises:
            ValueError: no training data, `output_dir` holds another run or is in use, or the checkpoint is of another.
            FloatingPointError: the loss is no longer a number; the step is named.
            OSError: a checkpoint cannot be written; the one before is whole.
            KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; a checkpoint was written first.
        """
        args, started = self.args, time.monotonic()
        if self.train_dataset is None:
            raise ValueError("no train_dataset was given to train on")
        resume = args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        checkpoint = check_output_dir(args.output_dir, resume, args.overwrite_output_dir)
        if self.accelerator.mixed_precision != args.mixed_precision:  # another trainer was made since
            self.accelerator = make_accelerator(args)
        self.accelerator.wait_for_everyone()  # nobody writes before all have looked
        if self.accelerator.is_main_process:
            os.makedirs(args.output_dir, exist_ok=True)
            remove_checkpoints(args.output_dir, keep=None if lies_in(checkpoint, args.output_dir) else 0)

        self._start(checkpoint)
        print_processes(self.accelerator, args, self.train_batch_size)
        first_step = self.state.global_step
        try:
            own, tracked = own_folder(self.accelerator, args.output_dir), trackers(self.accelerator, args)
            with own, tracked, self._make_progress() as self._progress, stop_on_signal() as stop:
                self._stop_signal = stop
                for epoch in self._epochs():
                    if self._lbfgs is not None:
                        self._iterate(self._lbfgs)
                    else:
                        self._train_epoch(epoch)
                    self._end_epoch(epoch)
                best = self._best.restore(self.model)
                self._check_prompt()
        finally:
            self.model.eval()
        self.model.card_details = self.card_details(self.train_dataset, self._recipe())
        seconds = time.monotonic() - started
        metrics: dict[str, Any] = {
            "train_runtime": seconds,
            "train_steps_per_second": (self.state.global_step - first_step) / seconds,
            "train_loss": self.state.log_history[-1]["loss"],
            "train_accuracy": self.state.log_history[-1]["accuracy"],
            **best,
        }
        if self._lbfgs is not None:
            metrics |= {"text_passes": self._lbfgs.text_passes, "train_ended": self._lbfgs.ended}
            self._progress.ended(self._lbfgs.ended)
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def _start(self, checkpoint: Any) -> None:
        """Model, optimizer, images and state, as at the beginning or as in a checkpoint."""
        dataset, device = self.train_dataset, self.accelerator.device
        assert dataset is not None
        labels = torch.tensor(dataset["label"][:])
        with_lbfgs = self.args.optim == LBFGS
        self._gradients = BatchGradients(self.model, self.accelerator, self.args)
        for parameter in self._gradients.parameters:
            broadcast(parameter.data)  # the first process's draw, should they have drawn differently
        optimizer = None if with_lbfgs else make_optimizer(self._gradients.parameters, self.args)
        self.optimizer = optimizer and self.accelerator.prepare(optimizer)
        self.state = TrainerState()
        run = {
            "base_model": weights_fingerprint(self.model.clip.vision_model, self.model.clip.text_model.base_layer),
            "labels": labels.tolist(),
            "arguments": {**self._recipe(), "train_images": dataset._fingerprint},
        }
        extra: dict[str, torch.Tensor] = {}
        if checkpoint is not None:
            self.state, extra = load_checkpoint(checkpoint, self.model, self.optimizer, run)
            with naming_checkpoint(checkpoint):
                set_random_states(self.accelerator, extra)
        self._best = BestPrompt(self.args, self.state.epoch, extra)
        self._pending: list[torch.Tensor] = []  # loss and accuracy of updates that nobody has read yet
        self.encode_datasets()
        if self.args.num_views is None:
            self._images: Any = FreshCrops(self.model, dataset, self.args.seed, self.args.dataloader_num_workers)
        else:
            embeds = self.image_embeds(dataset, self.args.num_views).to(device)
            self._images = CachedImages(embeds, labels.to(device), self.args.seed)
        self._lbfgs = None
        if with_lbfgs:
            self._lbfgs = FullBatchLBFGS(self._gradients, embeds, labels.to(device), self.args)
            if checkpoint is not None:
                changed = changed_arguments(self.state.run, run).keys() - {"max_text_passes", *self.args.selection}
                with naming_checkpoint(checkpoint):
                    self._lbfgs.load_state_tensors(extra, same_loss=not changed)
        self.state.run = run

    def _recipe(self) -> dict[str, Any]:
        """The settings that decide what is learned."""
        return {**decisive_arguments(self.args), **self.args.selection, "train_batch_size": self.train_batch_size}

    def _epochs(self) -> Iterator[int]:
        """The epochs that are left, or the iterations of L-BFGS until it ends, while validation has patience."""
        while not self._best.is_out_of_patience(self.state.epoch):
            if self._lbfgs.ended if self._lbfgs is not None else self.state.epoch >= self.num_train_epochs:
                return
            yield self.state.epoch
        if self._lbfgs is not None:
            self._lbfgs.ended = f"no higher validation accuracy in {self.args.early_stopping_patience} iterations"

    def _iterate(self, lbfgs: FullBatchLBFGS) -> None:
        """One iteration of L-BFGS, in the place of an epoch."""
        self.model.train()
        self.state.epoch_step = 1
        try:
            found = lbfgs.step()
        except FloatingPointError as error:
            raise FloatingPointError(self._not_finite(f"{error} after {lbfgs.text_passes} text passes")) from error
        self.state.losses.append(found.loss)
        self.state.accuracies.append(found.accuracy)
        self.state.global_step = lbfgs.text_passes

    def _train_epoch(self, epoch: int) -> None:
        self.model.train()
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate_at(epoch, self.num_train_epochs)
        updates = self.epoch_updates(epoch)[self.state.epoch_step :]
        encoded = self.args.num_views is not None
        stream = self._images.batches(
            epoch, [self._gradients.rows(batch, encoded) for update in updates for batch in update]
        )
        for update in updates:
            self._pending.append(self._update(update, stream))
            self.state.epoch_step += 1
            self.state.global_step += 1
            self._progress.step(epoch + 1, self.state.global_step, self._pending[-1])
            if self.args.save_strategy == "steps" and self.state.global_step % self.args.save_steps == 0:
                self.save_checkpoint()
            if self._must_stop():
                self._stop()

    def _update(self, update: Sequence[Batch], stream: Iterator[dict[str, torch.Tensor]]) -> torch.Tensor:
        """One optimizer step on one batch or, with gradient accumulation, several; gives loss and accuracy `(2,)`."""
        images = sum(map(len, update))
        measured = torch.zeros(2, device=self.accelerator.device)
        for batch, inputs in zip(update, stream, strict=False):
            measured += self._gradients.add(inputs, len(batch), weight=len(batch) / images)
        self._gradients.merge()
        assert self.optimizer is not None
        self.optimizer.step()
        return measured

    def _end_epoch(self, epoch: int) -> None:
        """Log the epoch, and save it."""
        self._read_measurements()
        steps = self.state.epoch_step
        row = {
            "epoch": epoch + 1,
            "step": self.state.global_step,
            "loss": float(np.mean(self.state.losses[-steps:])),
            "accuracy": float(np.mean(self.state.accuracies[-steps:])),
        }
        if self.optimizer is not None:
            row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if self.args.eval_strategy == "epoch" and self.eval_dataset is not None:
            row["eval_accuracy"] = self.evaluate()["accuracy"]
            self._best.see(self.model, row)
        self.state.log_history.append(row)
        self.state.epoch, self.state.epoch_step = epoch + 1, 0
        self._progress.epoch(row)
        self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])
        for callback in self.callbacks:
            callback(self, row)
        if self.args.save_strategy == "epoch" or (self._lbfgs is not None and self._saves_now()):
            self.save_checkpoint()
        if self._lbfgs is not None and not self._lbfgs.ended and self._must_stop():
            self._stop()

    def _saves_now(self) -> bool:
        """Whether a checkpoint is due, with save_strategy="steps"."""
        step, every = self.state.global_step, self.args.save_steps
        before = self.state.log_history[-2]["step"] if len(self.state.log_history) > 1 else 0
        return self.args.save_strategy == "steps" and step // every > before // every

    @property
    def train_batch_size(self) -> int:
        """Images of a batch over all processes; with L-BFGS all images and their views."""
        if self.args.per_device_train_batch_size is None:  # with L-BFGS
            assert self.train_dataset is not None
            return len(self.train_dataset) * (self.args.num_views or 1)
        return self.args.per_device_train_batch_size * self.accelerator.num_processes

    @property
    def num_train_epochs(self) -> int:
        """The arguments', else the method's."""
        assert self.args.num_train_epochs is not None
        return self.args.num_train_epochs

    def epoch_order(self, epoch: int) -> list[int]:
        """The order of the training images in an epoch, a pure function of seed and epoch. Override for another."""
        assert self.train_dataset is not None
        return np.random.default_rng([self.args.seed, epoch]).permutation(len(self.train_dataset)).tolist()

    def epoch_updates(self, epoch: int) -> list[list[Batch]]:
        """The batches of each update of an epoch, over all processes."""
        order, size, group = self.epoch_order(epoch), self.train_batch_size, self.args.gradient_accumulation_steps
        if self.args.dataloader_drop_last and len(order) > size:
            order = order[: len(order) // size * size]
        batches: list[Batch] = [order[start : start + size] for start in range(0, len(order), size)]
        return [batches[start : start + group] for start in range(0, len(batches), group)]

    def _read_measurements(self) -> None:
        """Move what updates have measured into the state, the same in all processes.

        Raises:
            FloatingPointError: a loss is no finite number.
        """
        if not self._pending:
            return
        rows = self.accelerator.reduce(torch.stack(self._pending), "sum").tolist()
        first = self.state.global_step - len(rows) + 1
        self._pending = []
        for step, (loss, accuracy) in enumerate(rows, start=first):
            if not math.isfinite(loss):
                raise FloatingPointError(self._not_finite(f"the loss is {loss} at step {step}"))
            self.state.losses.append(loss)
            self.state.accuracies.append(accuracy)

    def _check_prompt(self) -> None:
        """Raise `FloatingPointError` where the last update has spoilt the prompt; its loss is measured before it."""
        if fault := self.prompt_fault():
            raise FloatingPointError(self._not_finite(f"{fault} after {self._unit} {self.state.global_step}"))

    def _not_finite(self, what: str) -> str:
        kept = list_checkpoints(self.args.output_dir)
        good = f"{kept[-1]} is the last good checkpoint" if kept else "no checkpoint was written before"
        way_on = "Try full precision, or other images"
        if self.optimizer is not None:
            way_on = f"Try a learning_rate below {self.optimizer.param_groups[0]['lr']:g}"
        return f"{what} ({self._progress.position(self.state.last_epoch)}): stopped; {good}. {way_on}"

    def save_checkpoint(self) -> None:
        """Write `checkpoint-{step}` into `output_dir`, and delete the oldest beyond `save_total_limit`."""
        self._read_measurements()
        self._check_prompt()
        extra = random_states(self.accelerator) | self._best.state_tensors()
        if self._lbfgs is not None:
            extra |= self._lbfgs.state_tensors()
        if self.accelerator.is_main_process:
            written = save_checkpoint(self.args.output_dir, self.model, self.optimizer, self.state, extra)
            remove_checkpoints(self.args.output_dir, keep=self.args.save_total_limit, written=written)

    def _must_stop(self) -> bool:
        """Whether Ctrl-C or SIGTERM came; several processes stop at the same update."""
        every = STOP_CHECK_STEPS if self._lbfgs is None and self.accelerator.num_processes > 1 else 1
        return self.state.global_step % every == 0 and any_process(self.accelerator, self._stop_signal.is_set())

    def _stop(self) -> None:
        self.save_checkpoint()
        raise KeyboardInterrupt(
            f"stopped after {self._unit} {self.state.global_step}; saved "
            f"{os.path.join(self.args.output_dir, f'checkpoint-{self.state.global_step}')}. To go on, run the "
            "same again with resume_from_checkpoint=True (--resume_from_checkpoint True)"
        )

    @property
    def _unit(self) -> str:
        """What `state.global_step` counts."""
        return "step" if self._lbfgs is None else "text pass"

    def _make_progress(self) -> TrainingProgress:
        state, epochs = self.state, None
        if self._lbfgs is None:
            epochs = self.num_train_epochs
            left = (epochs - state.epoch) * len(self.epoch_updates(0)) - state.epoch_step
        else:
            left = self._lbfgs.max_text_passes - state.global_step
        return TrainingProgress(
            epochs=epochs,
            steps=state.global_step + left,
            step=state.global_step,
            unit="steps" if self._lbfgs is None else "passes",
            live=not self.args.disable_tqdm,
            visible=self.accelerator.is_main_process,
        )

    def encode_datasets(self) -> None:
        """Encode the images that training and its evaluation read, so that a bad one is found before any step.

        With fresh crops the training images are only decoded. What was done before costs nothing.

        Raises:
            ValueError: an image cannot be read; its path is named.
        """
        for dataset, views in ((self.train_dataset, self.args.num_views), (self.eval_dataset, 1)):
            if dataset is not None:
                self.read_images(dataset, views)
