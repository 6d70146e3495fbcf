# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-coop"]
# ///
"""Learn a prompt for CLIP from a few labelled images.

    accelerate launch examples/train.py --train_dir flowers/train --test_dir flowers/test --num_shots 16 \
        --output_dir coop-flowers

`uv run` installs what it needs, and `hf jobs uv run examples/train.py …` runs it on Hugging Face's machines.
Offline, on the embedded model and images: --model_name_or_path demo --dataset_name demo
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import set_seed

from hf_coop import CoOpTrainingArguments, HFCoOp, data
from hf_coop.demo import clip_named
from hf_coop.encoding import check_templates
from hf_coop.escaping import tell
from hf_coop.evaluation import accuracies_told, plot_training_curves
from hf_coop.files import staged_folder
from hf_coop.training import (
    RUN_CONFIG_FILE,
    SeedArguments,
    check_output_dir,
    describe_source,
    learn_prompt,
    run_script,
    starting_prompt,
    timed,
    train_over_seeds,
    write_config,
)
from hf_coop.tuners import config_class_of, make_prompt_arguments, prompt_options


@dataclass
class ModelArguments:
    option_groups: ClassVar = {"model_name_or_path": "model"}
    model_name_or_path: str = field(
        default="openai/clip-vit-base-patch16", metadata={"help": "CLIP on the Hub or in a folder; demo: embedded."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})


PromptArguments = make_prompt_arguments()  # method, n_ctx, ctx_init, …: the options of all methods


@dataclass
class DataArguments:
    option_groups: ClassVar = {"train_dir": "images"}
    train_dir: str | None = field(default=None, metadata={"help": "Folder with one sub-folder of images a class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, of validation images."})
    test_dir: str | None = field(default=None, metadata={"help": "The same, of test images."})
    dataset_name: str | None = field(default=None, metadata={"help": "Hub id, folder or .parquet; demo: embedded."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    benchmark: str | None = field(default=None, metadata={"help": "An image set of the papers: dtd, sun397, …."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the benchmarks; default: $HF_COOP_DATA."})
    train_split: str | None = field(default=None, metadata={"help": "Of the data set's splits; default: train."})
    validation_split: str | None = field(default=None, metadata={"help": "Default: validation, if not the test."})
    test_split: str | None = field(default=None, metadata={"help": "Default: test, else validation."})
    image_column_name: str | None = field(default=None, metadata={"help": "Of the data set; default: image."})
    label_column_name: str | None = field(default=None, metadata={"help": "Of the data set; default: label."})
    classnames_file: str | None = field(default=None, metadata={"help": "Class names, one a line, in label order."})
    skip_broken_images: bool = field(default=False, metadata={"help": "Leave out images that cannot be read."})
    test_size: float | None = field(default=None, metadata={"help": "Share of train_dir to hold out as test images."})
    cv_folds: int | None = field(default=None, metadata={"help": "Cross-validate over the shots, in so many folds."})
    num_shots: int = field(default=16, metadata={"help": "Training images a class; 0: all."})
    subsample_classes: str = field(
        default="all",
        metadata={"help": "base: the first half of the classes, new: the second.", "choices": data.CLASS_SUBSETS},
    )
    zero_shot_template: str | None = field(default=None, metadata={"help": "Compared with; default: the benchmark's."})

    def with_template(self) -> DataArguments:
        """With the hand-written prompt that is compared with, where none was given."""
        return replace(self, zero_shot_template=self.zero_shot_template or data.hand_crafted_template(self.benchmark))

    def load(self, seed: int) -> Any:
        here = ("num_shots", "subsample_classes", "zero_shot_template", "cv_folds")
        splits = data.load_image_splits(**{name: value for name, value in asdict(self).items() if name not in here})
        return data.subsample_classes(data.few_shot_splits(splits, self.num_shots, seed), self.subsample_classes)


def train(
    model_args: ModelArguments, prompt_args: Any, data_args: DataArguments, args: CoOpTrainingArguments
) -> dict[str, Any]:
    """Load, sample, train, evaluate, save; returns what `metrics.json` holds."""
    given, data_args = (model_args, prompt_args, data_args, args), data_args.with_template()
    seconds: dict[str, float] = {}
    check_templates(data_args.zero_shot_template)
    options = starting_prompt(args, config_class_of(prompt_args.method), prompt_options(prompt_args))
    check_output_dir(args.output_dir, args.resume_from_checkpoint, args.overwrite_output_dir)
    set_seed(args.seed)
    with timed(seconds, "loading"):
        splits = data_args.load(args.seed)
        classnames = data.classnames_of(splits["train"])
        path = clip_named(model_args.model_name_or_path)
        model = HFCoOp.from_clip(path, classnames, prompt_args.method, revision=model_args.model_revision, **options)
    described = describe_source(data_args.train_dir, data_args.dataset_name, data_args.benchmark)
    template, folds = data_args.zero_shot_template, data_args.cv_folds
    trainer, scores = learn_prompt(model, args, splits, template, cv_folds=folds, **described)
    trainer.save_model()

    measured = {"zero-shot": "zero_shot", "learned": "learned"} if "test" in splits else {}
    accuracies = {label: scores[name]["accuracy"] for label, name in measured.items()}
    seconds |= scores.pop("seconds")
    settings = {"model": vars(model_args), "prompt": vars(prompt_args), "data": vars(data_args)}
    settings["training"] = trainer.args.to_dict()
    metrics = {**scores, "seconds": seconds, "settings": settings, "classnames": classnames}
    if trainer.accelerator.is_main_process:
        with staged_folder(args.output_dir) as folder:
            Path(folder, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
            write_config(Path(folder, RUN_CONFIG_FILE), *given)
            plot_training_curves(trainer.state.log_history, Path(folder, "training_curves.png"), accuracies)
        if "best_epoch" in scores["training"]:
            best, accuracy = (scores["training"][name] for name in ("best_epoch", "best_eval_accuracy"))
            print(f"the best epoch was {best}, with a validation accuracy of {accuracy:.2%}")
        print(accuracies_told(scores))
        tell(f"saved to {args.output_dir} in {sum(seconds.values()):.0f} s")
    if args.push_to_hub:
        trainer.push_to_hub()
    return metrics


def run(settings: SeedArguments, *options: Any) -> dict[str, Any]:
    return train_over_seeds(train, settings, *options) if settings.seeds else train(*options)


def main() -> None:
    kinds = (SeedArguments, ModelArguments, PromptArguments, DataArguments, CoOpTrainingArguments)
    run_script(run, *kinds, description=__doc__)


if __name__ == "__main__":
    main()
