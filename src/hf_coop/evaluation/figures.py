"""The picture of a training run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..escaping import figure_text

LONGEST_NAME = 40
FEW_POINTS = 30  # a curve of so many shows each; of a single one nothing else could be seen


def plot_training_curves(
    log_history: Sequence[dict[str, Any]],
    path: str | os.PathLike[str],
    test_accuracies: Mapping[str, float] | None = None,
) -> None:
    """Loss, accuracy and learning rate of each epoch, or of each iteration of L-BFGS, side by side, as a PNG.

    Args:
        log_history: `trainer.state.log_history`.
        path: the file.
        test_accuracies (`Mapping[str, float]`, *optional*): accuracies on test images, from 0 to 1, which are drawn as
            levels under their names: `{"zero-shot": 0.84, "learned": 0.93}`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    with_epochs = "learning_rate" in log_history[0]  # L-BFGS has none, and counts text passes
    places = [row["epoch" if with_epochs else "step"] for row in log_history]
    marker = "o" if len(places) <= FEW_POINTS else ""
    panels = dict(zip(["loss", "accuracy", "rate"], figure.subplots(1, 3 if with_epochs else 2), strict=False))

    panels["loss"].plot(places, [row["loss"] for row in log_history], marker=marker, markersize=4)
    panels["loss"].set(title="loss on the training images")
    for name, label in (("accuracy", "accuracy on training images"), ("eval_accuracy", "on validation images")):
        measured = [(place, 100 * row[name]) for place, row in zip(places, log_history, strict=True) if name in row]
        if measured:
            panels["accuracy"].plot(*zip(*measured, strict=True), marker=marker, markersize=4, label=label)
    for (name, accuracy), style in zip((test_accuracies or {}).items(), ("--", "-.", ":"), strict=False):
        label = f"{figure_text(name, LONGEST_NAME)}, on test images: {accuracy:.1%}"
        panels["accuracy"].axhline(100 * accuracy, color="black", linestyle=style, linewidth=1, label=label)
    panels["accuracy"].set(title="accuracy", ylabel="%")
    figure.legend(*panels["accuracy"].get_legend_handles_labels(), ncols=4, loc="outside lower center")
    if with_epochs:
        panels["rate"].plot(places, [row["learning_rate"] for row in log_history], marker=marker, markersize=4)
        panels["rate"].set(title="learning rate")
    for axes in panels.values():
        axes.set(xlabel="epoch" if with_epochs else "text passes")
        if len(places) == 1:
            axes.set_xticks(places)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")
