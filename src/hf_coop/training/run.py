"""`PromptRun`: what a run does beside training: image features, predictions, saving and pushing."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer_utils import PredictionOutput

from ..data.checks import check_labelled_images
from ..data.dataset_images import check_images
from ..data.features import encode_images
from ..evaluation import classification_metrics, none_of_these_threshold
from ..hub import CardDetails, check_push
from ..modeling import HFCoOp
from ..prediction import evaluation_mode
from ..tuners.layer import tensor_versions
from ..tuners.model import check_values
from .arguments import CoOpTrainingArguments
from .processes import gather_shares, make_accelerator, own_share

if TYPE_CHECKING:
    from datasets import Dataset


class PromptRun:
    """A model with the processes that work on it.

    Args:
        model ([`HFCoOp`]): moved to the accelerator's device.
        args ([`CoOpTrainingArguments`]): precision, batch sizes, folders.
        eval_dataset (`datasets.Dataset`, *optional*): what `evaluate` measures on unless told.
    """

    def __init__(self, model: HFCoOp, args: CoOpTrainingArguments, eval_dataset: Dataset | None = None) -> None:
        self.model, self.args, self.eval_dataset = model, args, eval_dataset
        self.accelerator = make_accelerator(args)
        model.to(self.accelerator.device)
        if args.push_to_hub and self.accelerator.is_main_process:
            check_push(self._repo_id, args.hub_token)
        self._embeds: dict[tuple[str, int], tuple[Any, torch.Tensor]] = {}
        self._readable: set[str] = set()  # data sets whose images have all been decoded once

    def image_embeds(self, dataset: Dataset, views: int = 1) -> torch.Tensor:
        """Features `(N, views, D)` of a data set on the CPU, from the cache where they are there.

        One view is the processor's centre crop, several are random crops. Each process encodes its share of the images
        and gets all. They are kept here too, since finding them in the cache means hashing images and weights.
        """
        key, clip = (dataset._fingerprint, views), self.model.clip
        versions = tensor_versions(clip.vision_model) + tensor_versions(clip.visual_projection)
        if key not in self._embeds or self._embeds[key][0] != versions:
            own = own_share(self.accelerator, len(dataset)) or range(0)  # `select` refuses an empty range at the end
            embeds = encode_images(
                self.model,
                dataset.select(own) if self.accelerator.num_processes > 1 else dataset,
                views=views,
                random=views > 1,
                seed=self.args.seed,
                first=own.start,
                batch_size=self.args.per_device_eval_batch_size,
                dtype=self.args.feature_dtype,
            )
            self._embeds[key] = versions, gather_shares(self.accelerator, embeds, len(dataset)).cpu()
        return self._embeds[key][1]

    def read_images(self, dataset: Dataset, views: int | None) -> None:
        """Encode the images of a data set, or with `views=None` decode them only, so that a bad one is found early.

        Raises:
            ValueError: an image cannot be read; its path is named.
        """
        if views is not None:
            self.image_embeds(dataset, views)
        elif dataset._fingerprint not in self._readable:
            check_images(dataset)
            self._readable.add(dataset._fingerprint)

    def predict_zero_shot(self, dataset: Dataset, template: str) -> PredictionOutput:
        """What [`predict`] gives, of CLIP with a hand-written prompt.

        Args:
            dataset (`datasets.Dataset`): with the model's classes.
            template (`str`): with `{}` where the class name goes.

        Raises:
            ValueError: the data set or the template does not fit.
        """
        check_labelled_images(dataset, self.model.classnames)
        return self._output(self.model.zero_shot_logits(self.image_embeds(dataset)[:, 0], template), dataset)

    @torch.no_grad()
    def predict(self, dataset: Dataset) -> PredictionOutput:
        """Logits `(N, K)`, labels `(N,)` and metrics of a data set; several processes share the work.

        Raises:
            ValueError: the data set lacks a column, or its labels do not fit the model's classes.
        """
        check_labelled_images(dataset, self.model.classnames)
        embeds = self.image_embeds(dataset)[:, 0]
        return self._output(self._logits(embeds), dataset)

    def _output(self, logits: torch.Tensor, dataset: Dataset) -> PredictionOutput:
        labels = np.asarray(dataset["label"][:])
        logits = logits.cpu()
        metrics = classification_metrics(logits.softmax(-1).numpy(), labels, self.model.classnames)
        return PredictionOutput(logits.numpy(), labels, metrics)

    def evaluate(self, dataset: Dataset | None = None) -> dict[str, Any]:
        """Accuracy, top-5 accuracy, macro F1, per-class accuracy and expected calibration error.

        Args:
            dataset (`datasets.Dataset`, *optional*): default: `eval_dataset`.

        Returns:
            What [`classification_metrics`] returns, over each image once.

        Raises:
            ValueError: no data set, or it does not fit.
        """
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("no data set to evaluate on: pass one, or give the trainer an eval_dataset")
        return self.predict(dataset).metrics

    def evaluate_zero_shot(self, dataset: Dataset, template: str) -> dict[str, Any]:
        """What [`evaluate`] measures, of CLIP with a hand-written prompt; arguments as in [`predict_zero_shot`]."""
        return self.predict_zero_shot(dataset, template).metrics

    def card_details(self, train_dataset: Dataset, recipe: dict[str, Any]) -> CardDetails:
        """What the model card says of a prompt that has just been learned from `train_dataset`."""
        images, min_score = Counter(train_dataset["label"][:]), None
        if self.eval_dataset is not None:
            logits = torch.from_numpy(self.predict(self.eval_dataset).predictions)
            min_score = none_of_these_threshold(logits.softmax(-1).numpy())
        return CardDetails(
            shots=max(images.values()),
            train_images=len(train_dataset),
            seed=self.args.seed,
            min_score=min_score,
            training=recipe,
        )

    @torch.no_grad()
    def prompt_fault(self) -> str:
        """What is wrong with the learned values, so that nobody could load or use them; empty where nothing is."""
        try:
            for name, value in self.model.prompt_layer.active_learner.named_parameters():
                check_values(name, value)
        except ValueError as error:
            return str(error)
        image = torch.ones(1, self.model.clip.config.projection_dim, device=self.accelerator.device)
        with self.accelerator.autocast():
            logits = self.model(image_embeds=image).logits
        return "" if logits.isfinite().all() else "the logits are not finite"

    def _logits(self, embeds: torch.Tensor) -> torch.Tensor:
        """Logits `(N, K)` of features `(N, D)`: each process computes an equal share, in order, and gets them all."""
        accelerator, size = self.accelerator, self.args.per_device_eval_batch_size
        own = embeds[list(own_share(accelerator, len(embeds))) or [0]]
        with evaluation_mode(self.model.clip):
            batches = [self.model(image_embeds=batch.to(accelerator.device)).logits for batch in own.split(size)]
        return gather_shares(accelerator, torch.cat(batches), len(embeds))

    def save_model(self, output_dir: str | os.PathLike[str] | None = None) -> None:
        """Write the adapter and its card, by the main process, into `output_dir` (default: the arguments')."""
        if self.accelerator.is_main_process:
            self.model.save_pretrained(output_dir or self.args.output_dir)
        self.accelerator.wait_for_everyone()

    def push_to_hub(self, **kwargs: Any) -> Any:
        """Push the prompt to `hub_model_id`, or to a repository of `output_dir`'s name, by the main process.

        Args:
            kwargs: as in [`HFCoOp.push_to_hub`].
        """
        if not self.accelerator.is_main_process:
            return None
        options = {"token": self.args.hub_token, "private": self.args.hub_private_repo, **kwargs}
        return self.model.push_to_hub(self._repo_id, **options)

    @property
    def _repo_id(self) -> str:
        return self.args.hub_model_id or os.path.basename(os.path.abspath(self.args.output_dir))
