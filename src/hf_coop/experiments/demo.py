"""`hf-coop demo`: the main job on the embedded model and images, from a few labelled images to a saved prompt."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from ..data.few_shot import few_shot_indices
from ..demo import CLASSNAMES, DEMO_CLIP, HAND_WRITTEN_TEMPLATES, load_digits_dataset
from ..modeling import HFCoOp
from ..training import CoOpTrainer, CoOpTrainingArguments, starting_prompt
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
        RuntimeError: the loaded adapter does not predict what the learned one did.
    """
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    console, start = Console(), time.perf_counter()
    console.print(f"The embedded CLIP, {shots} handwritten digits a class, seed {seed}. Nothing is downloaded.")
    digits = load_digits_dataset()
    train, test = few_shot(digits["train"], shots, seed), digits["test"]
    trainer = make_trainer(train, seed, output)
    model = trainer.model

    test_features, test_labels = trainer.image_embeds(test)[:, 0], np.asarray(test["label"][:])
    guesses = {
        template: model.zero_shot_logits(test_features, template).argmax(-1).numpy()
        for template in HAND_WRITTEN_TEMPLATES
    }
    by_template = {template: float((guess == test_labels).mean()) for template, guess in guesses.items()}
    best = max(by_template, key=lambda template: by_template[template])
    train_seconds = trainer.train().metrics["train_runtime"]
    learned = trainer.predict(test)

    metrics = {
        "num_shots": shots,
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
    trainer.save_model()
    draw_predictions(test, guesses[best], learned.predictions.argmax(-1), best, output / "demo.png")
    check_saved(output, test, torch.from_numpy(learned.predictions), console)
    metrics["seconds"] = round(time.perf_counter() - start, 2)
    write_json(metrics, output / "metrics.json")
    print_results(metrics, output, console)
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
    console.print(f"Loaded again from {folder}: the same label for all {len(names)} test images.")


def draw_predictions(test: Dataset, before: np.ndarray, after: np.ndarray, template: str, path: Path) -> None:
    """A picture of test images with their predictions by the best hand-written prompt and by the learned one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Handwritten digits: hand-written prompt '{template}' (first line), learned prompt (second line)")
    for axes, i in zip(figure.subplots(3, 10).flat, range(len(test)), strict=False):
        axes.imshow(test[i]["image"])
        axes.set_axis_off()
        for y, guess in ((1.22, before[i]), (1.03, after[i])):
            right = int(guess) == test[i]["label"]
            axes.text(
                0.5,
                y,
                f"{CLASSNAMES[guess]} {'✓' if right else '✗'}",
                color="tab:green" if right else "tab:red",
                ha="center",
                transform=axes.transAxes,
            )
    staging = path.with_name(f".{path.name}")
    figure.savefig(staging, format="png", dpi=100)
    os.replace(staging, path)


def write_json(content: dict[str, Any], path: Path) -> None:
    staging = path.with_name(f".{path.name}")
    staging.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(staging, path)


def print_results(metrics: dict[str, Any], output: Path, console: Console) -> None:
    templates = Table(title="Zero-shot, hand-written prompts")
    templates.add_column("template")
    templates.add_column("accuracy", justify="right")
    ranked = sorted(metrics["zero_shot_accuracy_by_template"].items(), key=lambda item: -item[1])
    for template, value in ranked:
        templates.add_row(template, f"{value:.1%}")
    console.print(templates)
    table = Table(title=f"{metrics['num_test_images']} test images, {metrics['num_shots']} shots a class")
    for column in ("zero-shot, best of them", "CoOp", "difference", "seconds"):
        table.add_column(column, justify="right")
    zero_shot, coop = metrics["zero_shot_accuracy"], metrics["coop_accuracy"]
    gain = f"{100 * (coop - zero_shot):+.1f} points"
    table.add_row(f"{zero_shot:.1%}", f"{coop:.1%}", gain, f"{metrics['seconds']:.1f}")
    console.print(table)
    console.print(f"Adapter, metrics.json and demo.png are in {output}")
