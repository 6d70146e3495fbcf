"""The picture of a training run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def plot_training_curves(log_history: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Loss, accuracy and learning rate of each epoch, or of each iteration of L-BFGS, side by side, as a PNG.

    Args:
        log_history: `trainer.state.log_history`.
        path: the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    with_epochs = "learning_rate" in log_history[0]  # L-BFGS has none, and counts text passes
    places = [row["epoch" if with_epochs else "step"] for row in log_history]
    panels = {"loss": ["loss"], "accuracy": ["accuracy", "eval_accuracy"]}
    if with_epochs:
        panels["learning rate"] = ["learning_rate"]
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            if name in log_history[0]:
                axes.plot(places, [row[name] for row in log_history], label=name.replace("_", " "))
        axes.set(title=title, xlabel="epoch" if with_epochs else "text passes")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    figure.savefig(path, dpi=120, format="png")
