"""Accuracy of training recipes on the embedded digits and on shifted versions of them: what `fast` was chosen by.

Shots are drawn from the few-shot pool, and accuracy is measured on the images of the pool that are not among them; the
test images play no part. Finished runs are kept in `--cache`, so that an interrupted table goes on where it stopped.

    python benchmarks/recipes.py                                # the whole table
    python benchmarks/recipes.py --tasks demo --seeds 1         # some of it
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hf_coop import CoOpConfig, CoOpTrainer, CoOpTrainingArguments, HFCoOp
from hf_coop.data import few_shot_indices
from hf_coop.data.features import encode_images
from hf_coop.demo import CLASSNAMES, DEMO_CLIP, DEMO_SETS, load_digits_dataset
from hf_coop.training import starting_prompt

CONTEXTS = {"generic": False, "class-specific": True}
KEYS = ("recipe", "context", "task", "shots", "seed")


@cache
def encoded_pool(task: str) -> Dataset:
    """The few-shot pool of an embedded image set, as features."""
    pool = load_digits_dataset(task)["train"]
    embeds = encode_images(HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES), pool)[:, 0]
    return Dataset.from_dict({"image_embeds": embeds.numpy(), "label": pool["label"][:]})


def run(recipe: str, context: str, task: str, shots: int, seed: int) -> dict[str, float]:
    """Train by the recipe; gives accuracy in % on the rest of the pool, seconds of training, and text passes."""
    pool = encoded_pool(task)
    chosen = few_shot_indices(pool["label"][:], shots, seed)
    rest = pool.select(sorted(set(range(len(pool))) - set(chosen)))
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = CoOpTrainingArguments(
            folder, recipe=recipe, seed=seed, save_strategy="no", disable_tqdm=True, use_cpu=True
        )
        options = starting_prompt(args, CoOpConfig, {"class_specific_context": CONTEXTS[context]})
        trainer = CoOpTrainer(HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES, **options), args, pool.select(chosen))
        start = time.perf_counter()
        with redirect_stdout(StringIO()):  # its lines of progress
            passes = trainer.train().global_step
        seconds = time.perf_counter() - start
    accuracy = 100 * trainer.evaluate(rest)["accuracy"]
    return {"accuracy": round(accuracy, 4), "seconds": round(seconds, 3), "passes": passes}


def all_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every run that was asked for, cell by cell, from the cache where it is there."""
    lines = args.cache.read_text().splitlines() if args.cache.exists() else []
    known = {tuple(row[key] for key in KEYS): row for row in map(json.loads, lines)}
    # Seed by seed and recipe beside recipe, so that a table which is not finished yet compares like with like.
    wanted = [(r, c, t, n, s) for s, t, n, c, r in product(args.seeds, args.tasks, args.shots, CONTEXTS, args.recipes)]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for key in progress.track(wanted, description="training"):
            if key not in known:
                known[key] = dict(zip(KEYS, key, strict=True)) | run(*key)
                with args.cache.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
            yield known[key]


def print_tables(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The accuracy of each cell for each recipe, and what a recipe is to the first one."""
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        cells.setdefault((row["context"], row["task"], row["shots"], row["recipe"]), []).append(row["accuracy"])
    table = Table(title=f"accuracy in % on the rest of the pool, mean over seeds {args.seeds}")
    table.add_column("task")
    for column in ("shots", *(f"{context}\n{recipe}" for context, recipe in product(CONTEXTS, args.recipes))):
        table.add_column(column, justify="right")
    for task, shots in product(args.tasks, args.shots):
        means = [mean(cells[context, task, shots, recipe]) for context in CONTEXTS for recipe in args.recipes]
        table.add_row(task, str(shots), *(f"{value:.1f}" for value in means), end_section=shots == args.shots[-1])
    Console().print(table)
    for recipe, context in product(args.recipes, CONTEXTS):
        own = [row for row in rows if (row["recipe"], row["context"]) == (recipe, context)]
        accuracy, passes, seconds = (mean(row[name] for row in own) for name in ("accuracy", "passes", "seconds"))
        line = f"{recipe}, {context}: mean {accuracy:.2f} %, {passes:.0f} passes and {seconds:.2f} s a run"
        if recipe != args.recipes[0]:
            gains = {
                cell: mean(cells[context, *cell, recipe]) - mean(cells[context, *cell, args.recipes[0]])
                for cell in product(args.tasks, args.shots)
            }
            task, shots = worst = min(gains, key=lambda cell: gains[cell])
            line += f"; {mean(gains.values()):+.2f} points to {args.recipes[0]}"
            line += f", in the worst cell {gains[worst]:+.2f} ({task}, {shots} shots)"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=("paper", "fast"), default=["paper", "fast"])
    parser.add_argument("--tasks", nargs="+", choices=DEMO_SETS, default=list(DEMO_SETS))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--cache", type=Path, default=Path("outputs", "recipes.jsonl"), help="finished runs of this version"
    )
    args = parser.parse_args()
    args.cache.parent.mkdir(parents=True, exist_ok=True)
    print_tables(list(all_rows(args)), args)


if __name__ == "__main__":
    main()
