"""One run of an experiment, from the features of its set to a row of results; runs share only what they read."""

from __future__ import annotations

import io
import json
import platform
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from ..data import classnames_of, subsample_classes
from ..data.features import encode_images
from ..data.few_shot import few_shot_rows
from ..demo import clip_named
from ..encoding import distinct_classnames
from ..errors import whole_message
from ..escaping import file_name
from ..evaluation import FewShotFeatures, classification_metrics
from ..hub import METRICS
from ..modeling import HFCoOp
from ..training import CoOpTrainingArguments, describe_source, learn_prompt, starting_prompt
from .image_sets import ImageSource, load_features, without_bars
from .methods import Method, find_method
from .protocols import Run, find_protocol

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

VERSIONS = ("hf-coop", "torch", "transformers", "peft")
ONE_AT_A_TIME = threading.Lock()  # torch's random numbers and the standard output are the whole process's


@dataclass(frozen=True)
class Shared:
    """What all runs of an experiment share.

    Attributes:
        model (`str`), revision (`str`, *optional*): the CLIP; "demo" is the embedded one.
        prompt, training: options of the prompt, and fields of [`CoOpTrainingArguments`], where they were given.
        sources: the image sets by name.
        targets: for each set that is learned on, the others that are tested on.
        features (`str`): the folder of [`encode_set`]'s folders, one a set.
        prompts (`str`, *optional*): where learned prompts are kept.
    """

    model: str
    revision: str | None
    prompt: Mapping[str, Any]
    training: Mapping[str, Any]
    sources: Mapping[str, ImageSource]
    targets: Mapping[str, Sequence[str]]
    features: str
    prompts: str | None = None


@dataclass(frozen=True)
class Test:
    """Images that a run is tested on.

    Attributes:
        source ([`ImageSource`]): their set.
        classes (`str`): "all", "base" or "new".
        images (`Dataset`): as features.
    """

    source: ImageSource
    classes: str
    images: Dataset

    def result(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """What a row has of the metrics of [`classification_metrics`]; accuracies of classes in label order."""
        names = distinct_classnames(classnames_of(self.images))
        per_class = [metrics["per_class_accuracy"].get(name) for name in names]
        measured = {name: metrics[name] for name in (*METRICS, "num_samples")}
        return {"tested_on": self.source.name, "classes": self.classes, **measured, "per_class_accuracy": per_class}


def run_one(run: Run, shared: Shared) -> dict[str, Any]:
    """The row of a run; where it fails, a row with `error` and no results.

    Args:
        run ([`Run`]): which.
        shared ([`Shared`]): with what.
    """
    with ONE_AT_A_TIME, without_bars(), tempfile.TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        try:
            found = _measure(run, shared, scratch)
        except Exception as error:  # whatever it is, the other runs go on
            found = {"error": f"{type(error).__name__}: {whole_message(error)}"}
        return make_row(run, shared, {**found, "seconds": round(time.perf_counter() - start, 3)})


def make_row(run: Run, shared: Shared, found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of results with all its columns, whatever was found."""
    left_open: dict[str, Any] = {
        "results": [],
        "error": None,
        "seconds": None,
        "settings": "{}",
        "base_revision": shared.revision,
    }
    versions = {name.replace("-", "_"): version(name) for name in VERSIONS} | {"python": platform.python_version()}
    return {**run.columns(), **left_open, **found, "base_model": shared.model, "versions": versions}


def _measure(run: Run, shared: Shared, scratch: str) -> dict[str, Any]:
    method, source = find_method(run.method), shared.sources[run.dataset]
    splits = load_features(Path(shared.features, run.dataset))
    tests = _tests(run, shared, splits)
    if not method.learns:
        return _hand_written(method, shared, tests)
    rows = few_shot_rows(splits, run.shots, run.seed)
    if shared.training.get("image_views", "1") != "1" and method.is_prompt:
        splits = type(splits)({**splits, "train": source.load()["train"]})
    splits = type(splits)({name: splits[name].select(chosen) for name, chosen in rows.items()})
    splits = subsample_classes(splits, tests[0].classes)
    if method.baseline is not None:
        return _fitted(method, shared, source, splits, tests)
    return _learned(method, run, shared, source, splits, tests, scratch)


def _tests(run: Run, shared: Shared, splits: DatasetDict) -> list[Test]:
    """What a run is tested on; first the images of the classes that it learns."""
    source = shared.sources[run.dataset]
    if find_protocol(run.protocol).columns == "classes":
        return [Test(source, half, subsample_classes(splits, half)["test"]) for half in ("base", "new")]
    others = [shared.sources[name] for name in shared.targets.get(run.dataset, ())]
    others_images = [load_features(Path(shared.features, other.name))["test"] for other in others]
    targets = [Test(other, "all", images) for other, images in zip(others, others_images, strict=True)]
    return [Test(source, "all", splits["test"]), *targets]


def make_model(shared: Shared, classnames: Sequence[str], method: str = "coop", **options: Any) -> HFCoOp:
    """A fresh prompt on the experiment's CLIP, as [`HFCoOp.from_clip`] makes one."""
    return HFCoOp.from_clip(clip_named(shared.model), classnames, method, revision=shared.revision, **options)


def _metrics(logits: torch.Tensor, images: Dataset) -> dict[str, Any]:
    return classification_metrics(logits.softmax(-1).cpu().numpy(), images["label"][:], classnames_of(images))


def _hand_written(method: Method, shared: Shared, tests: Sequence[Test]) -> dict[str, Any]:
    """A baseline that looks at no training image, each set with its own hand-written prompts."""
    assert method.baseline is not None
    model, results = make_model(shared, classnames_of(tests[0].images)), []
    for test in tests:
        model.set_classnames(classnames_of(test.images))
        templates = method.baseline.templates(test.source.template, test.source.benchmark)
        logits = model.zero_shot_logits(encode_images(model, test.images)[:, 0], templates)
        results.append(test.result(_metrics(logits, test.images)))
    return {"results": results, "base_revision": model.prompt_config.revision}


def _fitted(
    method: Method, shared: Shared, source: ImageSource, splits: DatasetDict, tests: Sequence[Test]
) -> dict[str, Any]:
    """A baseline that is fitted to the shots."""
    assert method.baseline is not None
    model = make_model(shared, classnames_of(splits["train"]))
    embeds = {name: encode_images(model, split)[:, 0] for name, split in splits.items()}
    labels = {name: split["label"][:] for name, split in splits.items()}
    text = model.template_embeddings(method.baseline.templates(source.template, source.benchmark))
    features = FewShotFeatures(
        embeds["train"],
        labels["train"],
        text,
        model.logit_scale,
        embeds.get("validation"),
        labels.get("validation"),
    )
    head = method.baseline.fit(features)
    results = [test.result(_metrics(head(encode_images(model, test.images)[:, 0]), test.images)) for test in tests]
    return {"results": results, "settings": _settings(head.settings), "base_revision": model.prompt_config.revision}


def _learned(
    method: Method,
    run: Run,
    shared: Shared,
    source: ImageSource,
    splits: DatasetDict,
    tests: Sequence[Test],
    scratch: str,
) -> dict[str, Any]:
    """A prompt that is learned, tested, kept where that was asked for, and then put before the names of other sets."""
    assert method.config is not None
    args = training_arguments(run, shared, scratch)
    options = method.prompt_options({**shared.prompt, **run.context}, source.template)
    options = starting_prompt(args, method.config, options)
    set_seed(run.seed)
    model = make_model(shared, classnames_of(splits["train"]), method.config.label, **options)
    own, *others = tests
    images = {"train": splits["train"], "test": own.images}
    described = {**describe_source(**source.where), "dataset_name": run.dataset, "shots": run.shots}
    trainer, scores = learn_prompt(model, args, images, source.template, **described)
    learned = {"n_ctx": model.prompt_config.n_ctx, **model.card_details.training}
    if shared.prompts:
        trainer.save_model(Path(shared.prompts, prompt_folder(run)))
    results = [own.result(scores["learned"])]
    for test in others:
        model.set_classnames(classnames_of(test.images))
        results.append(test.result(trainer.evaluate(test.images)))
    return {"results": results, "settings": _settings(learned), "base_revision": model.prompt_config.revision}


def training_arguments(run: Run, shared: Shared, folder: str) -> CoOpTrainingArguments:
    """How the prompt of a run is trained; nothing but the prompt itself is kept.

    Raises:
        ValueError: an option is out of its range.
    """
    return CoOpTrainingArguments(folder, save_strategy="no", disable_tqdm=True, seed=run.seed, **shared.training)


def prompt_folder(run: Run) -> str:
    """Where the prompt of a run is kept below the prompts' folder: "flowers/coop-m4-16shots-seed1"."""
    length = f"-m{run.n_ctx}" if run.n_ctx else ""
    words = "-" + "-".join(run.ctx_init.split()) if run.ctx_init else ""
    names = (file_name(name.replace(" ", "-")) for name in (run.dataset, f"{run.method}{length}{words}"))
    return f"{'/'.join(names)}-{run.shots}shots-seed{run.seed}"


def _settings(values: Mapping[str, Any]) -> str:
    """What a run used, as JSON: each method has settings of its own, and a column of a data set has one type."""
    return json.dumps(values, default=str)
