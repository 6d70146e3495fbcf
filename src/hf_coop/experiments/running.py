"""`run_experiment`: a protocol of the papers from the plan to tables and curves; interrupted, it goes on."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import whole_message
from ..escaping import one_line, tell
from ..training import CoOpTrainingArguments
from ..training.run import PromptRun
from .experiment import FEATURES, Experiment
from .image_sets import ImageSource, encode_set, without_bars
from .jobs import WorkerDied, in_parallel
from .protocols import Run, find_protocol
from .report import write_report
from .results import ResultsFolder, Row, read_rows
from .run import make_model, make_row, run_one

if TYPE_CHECKING:
    from datasets import DatasetDict


def run_experiment(experiment: Experiment, dry_run: bool = False) -> Path:
    """Run what is missing of an experiment, and write its tables and curves.

    `output_dir` then holds `results.jsonl` (a row a run), `tables.md`, `tables.tex`, `curves.png` and `curves.svg`.
    Each run that ends is written at once. Killed at any moment and started again, only runs that had not ended are
    done; one that fails is a row with its error.

    Args:
        experiment ([`Experiment`]): what to run.
        dry_run (`bool`): print the plan only.

    Returns:
        The folder of results.

    Raises:
        ValueError: an image set is missing or damaged, or the folder holds results of another experiment or is in use.
        OSError: the folder cannot be written, or the model or the scheduler not be found.
    """
    folder = Path(experiment.output_dir)
    splits = {source.name: _load(source, experiment) for source in experiment.shared.sources.values()}
    if dry_run:
        there = {Run.of_row(row) for row in read_rows(folder)}
        _print_plan(experiment, splits, [run for run in experiment.runs if run not in there])
        return folder
    with ResultsFolder(folder) as results:
        results.check_same(experiment.described(splits))
        results.tidy(drop_failed=experiment.retry_failed)
        missing = [run for run in experiment.runs if run not in results.rows]
        _print_plan(experiment, splits, missing)
        try:
            missing = _encode(experiment, splits, missing, results)
            _run(experiment, missing, results)
        finally:
            shutil.rmtree(folder / FEATURES, ignore_errors=True)
        write_report(experiment, results)
    return folder


def _load(source: ImageSource, experiment: Experiment) -> DatasetDict:
    splits = source.load()
    if source in experiment.learned_on and "train" not in splits:
        raise ValueError(f"{source.name} has test images alone: learn on another set, such as imagenet")
    return splits


def _print_plan(experiment: Experiment, splits: Mapping[str, DatasetDict], missing: Sequence[Run]) -> None:
    """What is going to be done, before it is."""
    tell(f"{find_protocol(experiment.protocol).title}, {experiment.model_name_or_path}")
    for name, of_set in splits.items():
        use = "learned on" if any(source.name == name for source in experiment.learned_on) else "tested on"
        images = ", ".join(f"{len(split)} {split_name}" for split_name, split in of_set.items())
        print(f"  {one_line(name)}, {use}: {len(of_set['test'].features['label'].names)} classes; images: {images}")
    counts, left = Counter(run.method for run in experiment.runs), Counter(run.method for run in missing)
    for method in counts:
        print(f"  {method}: {counts[method]} runs, {left[method]} to do")
    there = len(experiment.runs) - len(missing)
    tell(f"{len(experiment.runs)} runs, of which {there} ended before: {len(missing)} to do")


def _encode(
    experiment: Experiment, splits: Mapping[str, DatasetDict], missing: Sequence[Run], results: ResultsFolder
) -> list[Run]:
    """Compute the features that the runs read; gives the runs of the sets whose images could be read."""
    if not missing:
        return []
    shared = experiment.shared
    with tempfile.TemporaryDirectory() as scratch, without_bars():
        encoder = PromptRun(make_model(shared, ["image"]), CoOpTrainingArguments(scratch, **shared.training))
    broken: dict[str, str] = {}
    learned_on = dict.fromkeys(run.dataset for run in missing)
    for name in dict.fromkeys([*learned_on, *(t for source in learned_on for t in shared.targets.get(source, ()))]):
        draws = {(run.shots, run.seed) for run in missing if run.dataset == name and run.shots}
        start = time.perf_counter()
        try:
            encode_set(splits[name], draws, encoder, Path(shared.features, name))
        except ValueError as error:  # an image that cannot be read: the runs of other sets go on
            broken[name] = f"{type(error).__name__}: {whole_message(error)}"
            continue
        tell(f"image features of {name}: {time.perf_counter() - start:.1f} s")
    readable = []
    for run in missing:
        bad = [name for name in (run.dataset, *shared.targets.get(run.dataset, ())) if name in broken]
        if bad:
            results.add(make_row(run, shared, {"error": broken[bad[0]]}))
        else:
            readable.append(run)
    return readable


def _run(experiment: Experiment, missing: Sequence[Run], results: ResultsFolder) -> None:
    """Do the runs; each row is on the disk as soon as it is there."""
    shared = experiment.shared
    ends = in_parallel(
        partial(run_one, shared=shared), missing, experiment.jobs, experiment.backend, experiment.scheduler
    )
    for number, (run, row) in enumerate(ends, start=1):
        if isinstance(row, WorkerDied):
            row = make_row(run, shared, {"error": f"{type(row).__name__}: {row}"})
        results.add(row)
        tell(f"[{number}/{len(missing)}] {run}: {_told(row)}")


def _told(row: Row) -> str:
    if row["error"] is not None:
        return f"FAILED, {row['error']}"
    found = ", ".join(f"{100 * result['accuracy']:.1f} % of {_what(result, row)}" for result in row["results"])
    return f"{found} ({row['seconds']:.1f} s)"


def _what(result: Mapping[str, Any], row: Row) -> str:
    return result["classes"] if result["tested_on"] == row["dataset"] else result["tested_on"]
