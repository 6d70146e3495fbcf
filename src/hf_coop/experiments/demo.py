"""`hf-coop demo`: the main job on the embedded model and images, from a few labelled images to a saved prompt."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from ..data.few_shot import describe_shots, few_shot_indices
from ..demo import CLASSNAMES, DEMO_CLIP, HAND_WRITTEN_TEMPLATES, load_digits_dataset
from ..escaping import one_line
from ..files import check_writable, staged_folder
from ..modeling import HFCoOp
from ..training import CoOpTrainer, CoOpTrainingArguments, Measured, measured_details, starting_prompt
from ..tuners import CoOpConfig


def run_demo(shots: int, seed: int, output: Path) -> dict[str, Any]:
    """Learn one context for all ten digits from `shots` images a class, and compare it with hand-written prompts.

    Writes the adapter, `metrics.json` and `demo.png` into `output`, then loads the adapter from there and checks that
    it predicts the same.

    Args:
        shots (`int`): labelled images a class, at least 1.
        seed (`int`): of the choice of images, the initial context and the order of batches.
        output (`Path`): folder to write to.

    Returns:
        The content of `metrics.json`.

    Raises:
        ValueError: `shots` is less than 1.
        OSError: `output` cannot be written to; before anything is computed.
        RuntimeError: the loaded adapter does not predict what the learned one did.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    check_writable(output)
    console, start = Console(markup=False, emoji=False), time.perf_counter()
    digits = load_digits_dataset()
    train, test = few_shot(digits["train"], shots, seed), digits["test"]
    used = Counter(train["label"][:])
    drawn = describe_shots(max(used.values()), len(train), len(used), "handwritten digit")
    console.print(f"The embedded CLIP, {drawn}, seed {seed}. Nothing is downloaded.")
    trainer = make_trainer(train, seed, output)
    model = trainer.model

    by_hand = {template: Measured.of(trainer.predict_zero_shot(test, template)) for template in HAND_WRITTEN_TEMPLATES}
    by_template = {template: found.metrics["accuracy"] for template, found in by_hand.items()}
    best = max(by_template, key=lambda template: by_template[template])
    train_seconds = trainer.train().metrics["train_runtime"]
    predicted = trainer.predict(test)
    learned = Measured.of(predicted)

    metrics = {
        "num_shots": max(used.values()),
        "seed": seed,
        "zero_shot_accuracy": by_template[best],
        "zero_shot_template": best,
        "zero_shot_accuracy_by_template": by_template,
        "coop_accuracy": learned.metrics["accuracy"],
        "n_ctx": model.prompt_config.n_ctx,
        "num_train_images": len(train),
        "num_test_images": len(test),
        "train_seconds": round(train_seconds, 2),
    }
    metrics["seconds"] = round(time.perf_counter() - start, 2)
    print_results(metrics, drawn, console)
    details = measured_details("test", CLASSNAMES, best, by_hand[best], learned)
    model.card_details = replace(model.card_details, dataset_name="demo", **details)
    trainer.save_model()
    with staged_folder(output) as folder:
        Path(folder, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        before, after = (found.guesses.predicted for found in (by_hand[best], learned))
        draw_predictions(test, before, after, best, Path(folder, "demo.png"))
    check_saved(output, test, torch.from_numpy(predicted.predictions), console)
    console.print(one_line(f"Adapter, metrics.json and demo.png are in {output}"))
    return metrics


def few_shot(pool: Dataset, shots: int, seed: int) -> Dataset:
    """`shots` images a class of `pool`, as the published code draws them."""
    return pool.select(few_shot_indices(pool["label"][:], shots, seed))


def make_trainer(train: Dataset, seed: int, output: Path, **config: Any) -> CoOpTrainer:
    """A fresh prompt on the embedded CLIP with the trainer that will learn it by the default recipe.

    Args:
        train (`Dataset`): the shots.
        seed (`int`), output (`Path`): of the run.
        config: as in [`CoOpConfig`].
    """
    torch.manual_seed(seed)
    args = CoOpTrainingArguments(
        output_dir=str(output), overwrite_output_dir=True, save_strategy="no", seed=seed, use_cpu=True
    )
    model = HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES, **starting_prompt(args, CoOpConfig, config))
    return CoOpTrainer(model, args, train)


def check_saved(folder: Path, test: Dataset, logits: torch.Tensor, console: Console) -> None:
    """Load the adapter from disk and compare what it predicts for the test images with `logits` `(N, K)`."""
    loaded = HFCoOp.from_pretrained(folder)
    predicted = loaded.predict(test, top_k=1)
    scores, labels = logits.softmax(-1).max(-1)
    worst = max(abs(row[0]["score"] - score) for row, score in zip(predicted, scores.tolist(), strict=True))
    names = [row[0]["label"] for row in predicted]
    if names != [CLASSNAMES[k] for k in labels.tolist()] or worst > 1e-4:
        raise RuntimeError(f"the adapter loaded from {folder} predicts otherwise than the one saved there")
    console.print(one_line(f"Loaded again from {folder}: the same label for all {len(names)} test images."))


def draw_predictions(test: Dataset, before: np.ndarray, after: np.ndarray, template: str, path: Path) -> None:
    """A picture of the first test images, each above what a hand-written and the learned prompt take it for, as a PNG.

    Args:
        test (`Dataset`): images and labels.
        before, after (`np.ndarray`): the class of each image by the hand-written and by the learned prompt.
        template (`str`): the hand-written prompt.
        path (`Path`): the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    labels = np.asarray(test["label"][:])
    rows = {"hand-written": (before, -0.16), "learned": (after, -0.38)}  # where they stand, in heights of an image
    layout = ConstrainedLayoutEngine(hspace=0.1)  # so that labels are nearer to their own picture than to the next one
    figure = Figure(figsize=(13, 6.7), layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{(before == labels).mean():.1%} of {len(test)} test images are right by the best hand-written prompt, "
        f"'{template}',\n{(after == labels).mean():.1%} by the learned one. In frames: mended by learning"
    )
    grid = figure.subplots(3, 10)
    for axes, i in zip(grid.flat, range(len(test)), strict=False):
        axes.imshow(test[i]["image"])
        axes.set(xticks=[], yticks=[])
        mended = after[i] == labels[i] != before[i]
        axes.spines[:].set(color="tab:green", linewidth=5, visible=bool(mended))
        for guesses, height in rows.values():
            right = guesses[i] == labels[i]
            text, color = f"{CLASSNAMES[guesses[i]]} {'✓' if right else '✗'}", "tab:green" if right else "tab:red"
            axes.text(0.5, height, text, color=color, ha="center", va="center", transform=axes.transAxes)
    for axes in grid[:, 0]:
        for name, (_, height) in rows.items():
            axes.text(-0.12, height, name, ha="right", va="center", transform=axes.transAxes)
    figure.savefig(path, dpi=100, format="png")


def print_results(metrics: dict[str, Any], drawn: str, console: Console) -> None:
    templates = Table(title="Zero-shot, hand-written prompts")
    templates.add_column("template")
    templates.add_column("accuracy", justify="right")
    ranked = sorted(metrics["zero_shot_accuracy_by_template"].items(), key=lambda item: -item[1])
    for template, value in ranked:
        templates.add_row(template, f"{value:.1%}")
    console.print(templates)
    table = Table(title=f"{metrics['num_test_images']} test images; learned from {drawn}")
    for column in ("zero-shot, best of them", "CoOp", "difference", "seconds"):
        table.add_column(column, justify="right")
    zero_shot, coop = metrics["zero_shot_accuracy"], metrics["coop_accuracy"]
    gain = f"{100 * (coop - zero_shot):+.1f} points"
    table.add_row(f"{zero_shot:.1%}", f"{coop:.1%}", gain, f"{metrics['seconds']:.1f}")
    console.print(table)
