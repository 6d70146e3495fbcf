"""One run a seed: where each writes, and what they come to together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, ClassVar

from accelerate import PartialState

from ..escaping import tell
from ..files import staged_folder
from ..hub.model_card import METRICS
from .arguments import CoOpTrainingArguments
from .checkpoints import check_output_dir, list_checkpoints, wants_resume
from .options import RUN_CONFIG_FILE, write_config

SUMMARY_FILE = "summary.json"


@dataclass
class SeedArguments:
    """Over which seeds to train.

    Args:
        seeds (`list[int]`, *optional*): a run for each; default: one run, with the seed of `CoOpTrainingArguments`.

    Raises:
        ValueError: a seed is there twice.
    """

    option_groups: ClassVar[dict[str, str]] = {"seeds": "several runs"}

    seeds: list[int] | None = field(
        default=None, metadata={"help": "A run for each, in sub-folders, with mean and deviation; instead of --seed."}
    )

    def __post_init__(self) -> None:
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has one of them twice: {self.seeds}")


def arguments_of_run(args: CoOpTrainingArguments, seed: int, name: str) -> CoOpTrainingArguments:
    """The arguments of one of several runs.

    A run that is done but kept no checkpoint is done again when the others are resumed.

    Args:
        args ([`CoOpTrainingArguments`]): of all of them.
        seed (`int`): of this one.
        name (`str`): of its sub-folder of `output_dir`.
    """
    folder = str(Path(args.output_dir, name))
    again = wants_resume(args.resume_from_checkpoint) and not list_checkpoints(folder)
    return replace(args, seed=seed, output_dir=folder, overwrite_output_dir=args.overwrite_output_dir or again)


def train_over_seeds(train: Callable[..., dict[str, Any]], settings: SeedArguments, *options: Any) -> dict[str, Any]:
    """Train once a seed, each run into `seed{seed}` below `output_dir`, and write `summary.json` beside them.

    Args:
        train (`Callable`): one run; takes the `options` and gives metrics by "zero_shot", "validation", "learned".
        settings ([`SeedArguments`]): the seeds.
        options: of `train`, the last a [`CoOpTrainingArguments`].

    Returns:
        What `summary.json` holds: `seeds`, and the metrics' `mean` and `std` (of these runs, not an estimate of more).

    Raises:
        ValueError: something else is asked for that goes with one run alone, or a run's folder holds another run;
            before any of them starts.
    """
    *others, args = options
    seeds = settings.seeds or []
    for name in ("seed", "push_to_hub", "hub_model_id"):
        if (value := getattr(args, name)) != CoOpTrainingArguments.__dataclass_fields__[name].default:
            raise ValueError(f"{name}={value!r} is of one run, and seeds={seeds} are several: leave one out")
    runs = [arguments_of_run(args, seed, f"seed{seed}") for seed in seeds]
    for run in runs:
        check_output_dir(run.output_dir, run.resume_from_checkpoint, run.overwrite_output_dir)
    found = [train(*others, run) for run in runs]
    summary: dict[str, Any] = {"seeds": seeds, "mean": {}, "std": {}}
    for name in [name for name in ("zero_shot", "validation", "learned") if name in found[0]]:
        rows = [{metric: metrics[name][metric] for metric in METRICS} for metrics in found]
        summary["mean"][name], summary["std"][name] = mean_and_deviation(rows)
    if PartialState().is_main_process:
        with staged_folder(args.output_dir) as folder:
            Path(folder, SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            write_config(Path(folder, RUN_CONFIG_FILE), settings, *options)
        for name, mean in summary["mean"].items():
            accuracy = f"{100 * mean['accuracy']:.2f} ± {100 * summary['std'][name]['accuracy']:.2f} %"
            print(f"{name.replace('_', '-')} accuracy: {accuracy} over the seeds {seeds}")
        tell(f"saved to {args.output_dir}")
    return summary


def mean_and_deviation(rows: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation (over these rows, not an estimate of more) of each value.

    Args:
        rows: one a run, at least one, all with the same names.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    means = {name: fmean(column) for name, column in columns.items()}
    return means, {name: pstdev(column) for name, column in columns.items()}
