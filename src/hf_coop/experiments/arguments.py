"""The options of `hf-coop experiment` that are passed on: of one's own images, of the prompt and of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..training import CoOpTrainingArguments
from ..training.options import OptionParser
from ..tuners import make_prompt_arguments, prompt_options

#: Options of training that have another name here, or no meaning.
NOT_HERE = {
    "method": "--methods names what is compared",
    "seed": "--seeds names those of the runs",
    "output_dir": "--output_dir is the folder of results",
    **dict.fromkeys(
        ("resume_from_checkpoint", "overwrite_output_dir", "save_strategy", "save_steps", "save_total_limit"),
        "runs keep no checkpoints, and the same command goes on where it stopped",
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo"),
        "--save_prompts keeps the prompts, and `hf-coop push` publishes them",
    ),
    **dict.fromkeys(
        ("eval_strategy", "load_best_model_at_end", "early_stopping_patience"),
        "runs are trained to their end and measured there, as in the papers",
    ),
    **dict.fromkeys(("report_to", "disable_tqdm"), "results are in results.jsonl"),
}


@dataclass
class ImageArguments:
    """How one's own images are read, beside `train_dir`, `test_dir` and `dataset_name`."""

    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str | None = field(default=None, metadata={"help": "Split to draw the training images from."})
    validation_split: str | None = field(default=None, metadata={"help": "Default: validation, if not the test."})
    test_split: str | None = field(default=None, metadata={"help": "Default: test, else validation."})
    image_column_name: str | None = field(default=None, metadata={"help": "Column of the images."})
    label_column_name: str | None = field(default=None, metadata={"help": "Column of the labels."})
    classnames_file: str | None = field(default=None, metadata={"help": "Class names, one a line, in label order."})
    test_size: float | None = field(default=None, metadata={"help": "Share of train_dir to hold out as test images."})
    skip_broken_images: bool = field(default=False, metadata={"help": "Leave out images that cannot be read."})


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """The options that were given, as `images`, `prompt` and `training` of an [`Experiment`].

    Args:
        options: what the command does not know itself: `["--recipe", "paper", "--template=a photo of a {}."]`.

    Raises:
        SystemExit: there is no such option, or its value is wrong, told on one line.
        ValueError: it has another name here, or no meaning.
    """
    for name in (option.removeprefix("--").partition("=")[0] for option in options if option.startswith("--")):
        if name in NOT_HERE:
            raise ValueError(f"hf-coop experiment has no --{name}: {NOT_HERE[name]}")
    kinds = (ImageArguments, make_prompt_arguments(), CoOpTrainingArguments)
    images, prompt, training = OptionParser(kinds, without=NOT_HERE, prog="hf-coop train").parse(options)
    defaults = vars(CoOpTrainingArguments())
    return {
        "images": {name: value for name, value in vars(images).items() if value},
        "prompt": prompt_options(prompt),
        "training": {name: value for name, value in vars(training).items() if value != defaults[name]},
    }
