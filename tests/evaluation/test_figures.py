"""What the pictures of runs show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_coop.evaluation import plot_training_curves

EXAMPLES = Path(__file__).parents[2] / "examples"
ROW = {"step": 3, "loss": 0.5, "accuracy": 0.75, "learning_rate": 1e-5}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are written."""
    written: list[Figure] = []
    savefig = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        written.append(self)
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return written


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


class TestTrainingCurves:
    def test_one_epoch_is_a_point(self, tmp_path, figures):
        plot_training_curves([{"epoch": 1, **ROW}], tmp_path / "curves.png")
        for axes in figures[0].axes:
            assert all(line.get_marker() == "o" for line in axes.lines)
            assert list(axes.get_xticks()) == [1]
        assert Image.open(tmp_path / "curves.png").width > 600

    def test_accuracies_say_on_what_and_are_percent(self, tmp_path, figures):
        history = [{"epoch": epoch, **ROW, "eval_accuracy": 0.5 + epoch / 100} for epoch in range(1, 41)]
        plot_training_curves(history, tmp_path / "curves.png", {"zero-shot": 0.837, "learned": 0.898})
        training, validation, zero_shot, learned = figures[0].axes[1].lines
        assert training.get_marker() in ("", "None")
        assert set(training.get_ydata()) == {75}
        assert max(validation.get_ydata()) == 90
        assert (zero_shot.get_ydata()[0], learned.get_ydata()[0]) == pytest.approx((83.7, 89.8))
        assert legend(figures[0]) == [
            *("accuracy on training images", "on validation images"),
            *("zero-shot, on test images: 83.7%", "learned, on test images: 89.8%"),
        ]

    def test_lbfgs_counts_text_passes(self, tmp_path, figures):
        row = {name: value for name, value in ROW.items() if name != "learning_rate"}
        plot_training_curves([{"epoch": 1, **row}], tmp_path / "curves.png")
        assert [axes.get_xlabel() for axes in figures[0].axes] == ["text passes"] * 2
