"""The figures of a model card: a learned prompt beside the hand-written one, as small PNG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..encoding import distinct_classnames
from . import prompt_figures as figures
from .metrics import Guesses

FOLDER = "figures"
CARD_FIGURES = {  # file: what it is, and what to look for
    "accuracy_by_class.png": (
        "Accuracy of each class with the hand-written prompt and with the learned one",
        "A line leads from the accuracy of a class with the hand-written prompt (square) to that with the learned one "
        "(dot): green where it gained, red where it lost.",
    ),
    "changed_pairs.png": (
        "The confusions of two classes whose number changed most",
        "How many images of one class were taken for another: green where there are fewer now, red where there are "
        "more.",
    ),
    "reliability.png": (
        "Reliability diagram of both prompts, with their calibration errors",
        "Below the dashed line a prompt is surer than it is right, above it less sure; a larger mark stands for more "
        "images.",
    ),
}
FIGURE_FILES = tuple(f"{FOLDER}/{name}" for name in CARD_FIGURES)
DPI, COLOURS = 120, 64  # 576 pixels wide, which a card shows as they are
MARGIN = 0.1  # inches
PNG_START, MAX_BYTES = b"\x89PNG\r\n\x1a\n", 2**18


@dataclass(frozen=True)
class CardFigures:
    """The figures of one model card, drawn when they are first asked for.

    Args:
        images (`str`): what they were measured on, "360 test images".
        draw (`Callable[[], dict[str, bytes]]`): gives the content of each file of `CARD_FIGURES`.
    """

    images: str
    draw: Callable[[], dict[str, bytes]] = field(repr=False)

    @classmethod
    def of(
        cls, images: str, classnames: Sequence[str], labels: np.ndarray, before: Guesses, after: Guesses
    ) -> CardFigures:
        """Figures to draw.

        Args:
            images (`str`): as above.
            classnames (`Sequence[str]`): K names.
            labels (`np.ndarray` of shape `(N,)`): the right classes.
            before, after ([`Guesses`]): of the hand-written prompt and of the learned one.
        """
        return cls(images, partial(draw_card_figures, classnames, labels, before, after))

    @classmethod
    def read(cls, folder: Path, images: str) -> CardFigures | None:
        """The figures beside a card; None unless all are there, as small PNG files. They are not decoded."""
        paths = {name: folder / FOLDER / name for name in CARD_FIGURES}
        if not all(path.is_file() and path.stat().st_size <= MAX_BYTES for path in paths.values()):
            return None
        files = {name: path.read_bytes() for name, path in paths.items()}
        if not all(content.startswith(PNG_START) for content in files.values()):
            return None
        return cls(images, partial(dict, files))

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The content of each file of `CARD_FIGURES`."""
        return self.draw()

    def write(self, folder: Path) -> None:
        """Write the files into their sub-folder of `folder`."""
        (folder / FOLDER).mkdir(exist_ok=True)
        for name, content in self.files.items():
            (folder / FOLDER / name).write_bytes(content)


def draw_card_figures(
    classnames: Sequence[str], labels: np.ndarray, before: Guesses, after: Guesses
) -> dict[str, bytes]:
    """The content of each file of `CARD_FIGURES`; arguments as in [`CardFigures.of`]."""
    names = _drawable_names(classnames)
    drawn = (
        figures.accuracy_by_class(labels, before.predicted, after.predicted, names),
        figures.changed_pairs(labels, before.predicted, after.predicted, names),
        figures.reliability_diagram({"hand-written": before, "learned": after}, labels),
    )
    return {name: to_png(figure) for name, figure in zip(CARD_FIGURES, drawn, strict=True)}


def to_png(figure: Any) -> bytes:
    """A figure on white, which is readable on a dark page too, in a few colours, which makes it small."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.get_layout_engine().set(w_pad=MARGIN, h_pad=MARGIN)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def _drawable_names(classnames: Sequence[str]) -> list[str]:
    """The names, but "label 3" where matplotlib's font lacks a letter: the card lists the names by label."""
    from matplotlib.font_manager import findfont, get_font

    letters = get_font(findfont("DejaVu Sans")).get_charmap()
    names = distinct_classnames(classnames)
    return [name if all(ord(x) in letters for x in name) else f"label {k}" for k, name in enumerate(names)]
