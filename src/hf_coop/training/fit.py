"""`fit`: from labelled images to a learned prompt in one call, and the flow that it shares with `hf-coop train`."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import CLIPModel, set_seed
from transformers.trainer_utils import PredictionOutput

from ..data import classnames_of, few_shot_splits, hand_crafted_template, load_image_splits
from ..data.benchmarks import IMAGE_SETS
from ..data.folders import SPLIT_NAMES
from ..demo import clip_named
from ..encoding import check_templates
from ..evaluation import CardFigures, Guesses
from ..hub import METRICS
from ..modeling import HFCoOp
from ..tuners import config_class_of
from .arguments import CoOpTrainingArguments
from .cross_validation import cross_validate
from .recipes import starting_prompt
from .selection import check_validation
from .trainer import CoOpTrainer

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def fit(
    train: str | os.PathLike[str] | Dataset | DatasetDict,
    clip: str | os.PathLike[str] | CLIPModel = "openai/clip-vit-base-patch16",
    test: str | os.PathLike[str] | Dataset | None = None,
    *,
    method: str = "coop",
    num_shots: int = 16,
    zero_shot_template: str | None = None,
    args: CoOpTrainingArguments | None = None,
    **options: Any,
) -> HFCoOp:
    """Learn a prompt from labelled images by the default recipe: what `hf-coop train` does, without files.

    Args:
        train: a folder with one sub-folder of images a class, or a zip of it; a benchmark of the papers
            ("oxford_flowers"); a data set as in [`~hf_coop.data.load_image_splits`] (a Hub repository, a `.parquet`
            file, a folder of `save_to_disk`, "demo" for the embedded digits); or a `datasets.Dataset` or `DatasetDict`
            with the columns `image` and `label`.
        clip: a repository, a folder, or a loaded `CLIPModel`; "demo" for the embedded one.
        test: test images for a folder (another folder) or a `Dataset` (another one). Data sets with a test split bring
            their own.
        method (`str`): "coop", "cocoop", ….
        num_shots (`int`): training images a class, drawn by `args.seed`; 0: all.
        zero_shot_template (`str`, *optional*): the hand-written prompt to compare with, which the default recipe also
            holds the learned one near. Default: the benchmark's, else "a photo of a {}.".
        args ([`CoOpTrainingArguments`], *optional*): how to train, and where to write checkpoints. Default: the
            default recipe, without checkpoints.
        options: as in [`HFCoOp.from_clip`]: `n_ctx`, `ctx_init`, `revision`, `dtype`, ….

    Returns:
        The trained [`HFCoOp`], in evaluation mode. Its `card_details.zero_shot` and `card_details.learned` hold
        accuracy, top-5 accuracy, macro F1 and calibration error on the test images, where there are any.

    Raises:
        TypeError: `train` or `test` is nothing of this.
        ValueError, OSError: an option, the images or the model are wrong; before any training.
    """
    from datasets import Dataset

    source = _source_of(train)
    template = zero_shot_template or hand_crafted_template(source.get("benchmark"))
    check_templates(template)
    if test is not None:
        if "train_dir" in source and isinstance(test, (str, os.PathLike)):
            source["test_dir"] = test
        elif isinstance(train, Dataset) and isinstance(test, Dataset):
            source["dataset_name"] = {"train": train, "test": test}
        else:
            raise TypeError(
                "test must be a folder where train is one, and a datasets.Dataset where train is one; data sets and "
                f"benchmarks bring their own test split; got {test!r:.80} beside {train!r:.80}"
            )
    with tempfile.TemporaryDirectory(prefix="hf-coop-") as folder:
        args = args or CoOpTrainingArguments(output_dir=folder, overwrite_output_dir=True, save_strategy="no")
        prompt = starting_prompt(args, config_class_of(method), options)
        set_seed(args.seed)
        splits = few_shot_splits(load_image_splits(**source), num_shots, args.seed)
        model = HFCoOp.from_clip(clip_named(clip), classnames_of(splits["train"]), method, **prompt)
        try:
            learn_prompt(model, args, splits, template, **describe_source(**source))
        except KeyboardInterrupt as stop:
            if args.output_dir != folder:
                raise
            raise KeyboardInterrupt("stopped; to be able to go on, give fit args with an output_dir") from stop
    return model


def learn_prompt(
    model: HFCoOp,
    args: CoOpTrainingArguments,
    splits: Mapping[str, Dataset],
    zero_shot_template: str,
    *,
    cv_folds: int | None = None,
    callbacks: Sequence[Callable[[CoOpTrainer, dict[str, Any]], None]] = (),
    **described: Any,
) -> tuple[CoOpTrainer, dict[str, Any]]:
    """Train a prompt; where there are test images, measure a hand-written one before and the learned one afterwards.

    The card gets figures of both prompts on the test images, or else on the validation images. All images are read
    before the first step, so that a broken one costs no training.

    Args:
        model ([`HFCoOp`]): a fresh prompt.
        args ([`CoOpTrainingArguments`]): how to train it.
        splits (`Mapping[str, Dataset]`): `train`, and `validation` and `test` where there are any.
        zero_shot_template (`str`): the hand-written prompt; also what `args` hold the learned one near, unless they
            name another.
        cv_folds (`int`, *optional*): also measure by [`cross_validate`] over the training images.
        callbacks (`Sequence[Callable]`): of the trainer.
        described: what `model.card_details` says of the images: `dataset_name`, `dataset_id`, ….

    Returns:
        The trainer, whose model holds the prompt and its `card_details`; and what was measured: `zero_shot`,
        `learned`, `validation` (as [`CoOpTrainer.evaluate`] gives it), `cross_validation`, `training`, and `seconds`
        of each phase.

    Raises:
        ValueError: `args` ask for validation images that are not there, or that are the test images.
    """
    check_validation(args, splits)
    args = replace(args, anchor_template=args.anchor_template or zero_shot_template)
    scores: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    if cv_folds is not None:
        with timed(seconds, "cross_validation"):
            scores["cross_validation"] = cross_validate(model, args, splits["train"], cv_folds)
    trainer = CoOpTrainer(model, args, splits["train"], splits.get("validation"), callbacks)
    test, validation = splits.get("test"), trainer.eval_dataset
    held_out = validation if test is None else test
    with timed(seconds, "features"):
        trainer.encode_datasets()
        if held_out is not None:
            by_hand = Measured.of(trainer.predict_zero_shot(held_out, zero_shot_template))
    with timed(seconds, "training"):
        scores["training"] = trainer.train().metrics
    with timed(seconds, "evaluation"):
        if validation is not None:
            learned = Measured.of(trainer.predict(validation))
            scores["validation"] = learned.metrics
        if test is not None:
            learned = Measured.of(trainer.predict(test))
            scores |= {"zero_shot": by_hand.metrics, "learned": learned.metrics}
    details: dict[str, Any] = {"zero_shot_template": zero_shot_template}
    if test is not None:
        split = str(test.split or "test")  # folders and the embedded images do not say
        details = measured_details(split, model.classnames, zero_shot_template, by_hand, learned)
    elif validation is not None:
        details["figures"] = _card_figures("validation", model.classnames, by_hand, learned)
    model.card_details = replace(model.card_details, **{**details, **described})
    return trainer, {**scores, "seconds": seconds}


class Measured(NamedTuple):
    """What is kept of a prompt's predictions: not the logits, which of ImageNet's test images take 200 MB.

    Attributes:
        metrics (`dict[str, Any]`): as [`CoOpTrainer.evaluate`] gives them.
        labels (`np.ndarray` of shape `(N,)`): the right classes.
        guesses ([`Guesses`]): what the images were taken for.
    """

    metrics: dict[str, Any]
    labels: np.ndarray
    guesses: Guesses

    @classmethod
    def of(cls, output: PredictionOutput) -> Measured:
        """That of logits `(N, K)`, labels and metrics."""
        probabilities = torch.from_numpy(output.predictions).softmax(-1).numpy()
        return cls(output.metrics, output.label_ids, Guesses.of(probabilities))


def measured_details(
    split: str, classnames: Sequence[str], template: str, by_hand: Measured, learned: Measured
) -> dict[str, Any]:
    """What the model card says of a learned prompt beside a hand-written one: fields of [`CardDetails`].

    Args:
        split (`str`): of the images that both were measured on.
        classnames (`Sequence[str]`): K names.
        template (`str`): the hand-written prompt.
        by_hand, learned ([`Measured`]): both prompts, on the same images.
    """
    found = {"zero_shot": by_hand.metrics, "learned": learned.metrics}
    return {
        "split": split,
        "zero_shot_template": template,
        "figures": _card_figures(split, classnames, by_hand, learned),
        **{name: {metric: metrics[metric] for metric in METRICS} for name, metrics in found.items()},
    }


def _card_figures(split: str, classnames: Sequence[str], by_hand: Measured, learned: Measured) -> CardFigures:
    """The card's figures, which are drawn when it is saved; arguments as in [`measured_details`]."""
    images = f"{len(learned.labels):,} {split} images"
    return CardFigures.of(images, classnames, learned.labels, by_hand.guesses, learned.guesses)


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Put the seconds that the block takes into `seconds[phase]`."""
    start = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - start, 3)


def describe_source(
    train_dir: str | os.PathLike[str] | None = None,
    dataset_name: str | os.PathLike[str] | None = None,
    benchmark: str | None = None,
    **_: Any,
) -> dict[str, Any]:
    """What the model card says of the images that [`~hf_coop.data.load_image_splits`] loads with these arguments."""
    if train_dir is not None:
        folder = Path(train_dir).resolve()
        return {"dataset_name": (folder.parent if folder.name in SPLIT_NAMES else folder).name}
    if not isinstance(dataset_name, (str, os.PathLike)):  # a benchmark, or a data set in memory, which has no name
        return {"dataset_name": benchmark}
    name = os.fspath(dataset_name)
    return {"dataset_name": Path(name).name, "dataset_id": None if name == "demo" else name}


def _source_of(train: Any) -> dict[str, Any]:
    """The arguments of [`~hf_coop.data.load_image_splits`] for what was given."""
    from datasets import Dataset, DatasetDict

    if isinstance(train, (str, os.PathLike)):
        path = Path(train).expanduser()
        if path.is_file() and zipfile.is_zipfile(path):
            return {"train_dir": train}
        if path.is_dir() and not (path / "dataset_dict.json").exists() and any(p.is_dir() for p in path.iterdir()):
            return {"train_dir": train}
        if not path.exists() and str(train) in IMAGE_SETS:
            return {"benchmark": str(train)}
    elif not isinstance(train, (Dataset, DatasetDict)):
        raise TypeError(
            f"train is {train!r:.80}, of type {type(train).__name__}: give a folder with one sub-folder of images a "
            "class, the name of a benchmark or data set, or a datasets.Dataset or DatasetDict"
        )
    return {"dataset_name": train}
