"""A page that shows what a prompt learned: `report.html`, one file with all figures in it."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..encoding import distinct_classnames
from ..escaping import one_line
from . import prompt_figures as figures
from .metrics import Guesses, expected_calibration_error

MAX_MAPPED_IMAGES, MAX_SHOWN_IMAGES, MAX_SHOWN_CLASSES = 1000, 12, 10
THUMBNAIL = 128  # pixels
NAMES = "hand-written", "learned"


@dataclass
class Explanation:
    """Two prompts on the same test images: the hand-written one, and the learned one.

    Attributes:
        title (`str`): of the page.
        facts (`dict[str, str]`): what it is about: data set, base model, ….
        classnames (`list[str]`): K names.
        template (`str`): the hand-written prompt.
        labels (`np.ndarray` of shape `(N,)`): of the test images.
        image_embeds (`np.ndarray` of shape `(N, D)`): normalised.
        class_embeds: `(K, D)`, normalised: of the hand-written prompt, and of the learned one.
        probabilities: `(N, K)`: of the hand-written prompt, and of the learned one.
        words: the words nearest to each context vector with their distances, the nearest first; under the class's
            number where each class has a context of its own, else under `None`.
        notes (`list[str]`): what a reader should know of these figures.
    """

    title: str
    facts: dict[str, str]
    classnames: list[str]
    template: str
    labels: np.ndarray
    image_embeds: np.ndarray
    class_embeds: tuple[np.ndarray, np.ndarray]
    probabilities: tuple[np.ndarray, np.ndarray]
    words: dict[int | None, list[list[tuple[str, float]]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def predicted(self) -> tuple[np.ndarray, np.ndarray]:
        """The class that each prompt gives each image, `(N,)`."""
        before, after = self.probabilities
        return before.argmax(1), after.argmax(1)

    def put(self, right: bool) -> list[int]:
        """The images that the learned prompt put right (or wrong), the surest first; of each class at most two."""
        before, after = (guesses == self.labels for guesses in self.predicted)
        rows = np.flatnonzero(after & ~before if right else before & ~after)
        rows = rows[np.argsort(-self.probabilities[1][rows].max(1), kind="stable")]
        seen: dict[int, int] = {}
        for row in rows.tolist():
            seen[row] = sum(self.labels[other] == self.labels[row] for other in seen)
        return [row for row, earlier in seen.items() if earlier < 2][:MAX_SHOWN_IMAGES]

    def changed_most(self) -> list[int]:
        """The classes that the learned prompt changed most, by the number of images put right or wrong."""
        before, after = (guesses == self.labels for guesses in self.predicted)
        changes = np.bincount(self.labels[before != after], minlength=len(self.classnames))
        shown = np.argsort(-changes, kind="stable")[:MAX_SHOWN_CLASSES]
        return sorted(shown.tolist())


def render_report(explanation: Explanation, images: dict[int, Image.Image]) -> str:
    """The page as HTML, with nothing in it that is loaded from elsewhere.

    Args:
        explanation ([`Explanation`]).
        images (`dict[int, PIL.Image.Image]`): those of [`Explanation.put`], by row.
    """
    import jinja2

    labels, (before, after) = explanation.labels, explanation.predicted
    names = distinct_classnames([*map(one_line, explanation.classnames)])
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_shown
    )
    page = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    accuracy = [float((guesses == labels).mean()) for guesses in (before, after)]
    put_right, put_wrong = (int(((a == labels) & (b != labels)).sum()) for a, b in ((after, before), (before, after)))
    cards = {
        kind: [_card(explanation, names, row, images[row]) for row in explanation.put(kind)] for kind in (True, False)
    }
    return page.render(
        explanation=explanation,
        names=names,
        accuracy=accuracy,
        errors=[expected_calibration_error(scores, labels) for scores in explanation.probabilities],
        put_right=put_right,
        put_wrong=put_wrong,
        cards=cards,
        figures=draw_figures(explanation),
        words=explanation.words,
        few=len(names) <= figures.MAX_NAMED,
    )


def _shown(value: Any) -> Any:
    """What the page's template writes: any text on one line, but for its own figures."""
    return one_line(value) if type(value) is str else value


def draw_figures(explanation: Explanation) -> dict[str, list[Any]]:
    """The figures of the page as SVG, by section."""
    labels, names = explanation.labels, explanation.classnames
    before, after = explanation.predicted
    order = figures.similarity_order(explanation.class_embeds[0])
    limits = figures.similarity_limits(*explanation.class_embeds)
    confused = figures.most_confused(labels, before, after, classes=len(names))
    guesses = {name: Guesses.of(scores) for name, scores in zip(NAMES, explanation.probabilities, strict=True)}
    similarity = [
        figures.class_similarity(embeds, names, title, order, limits)
        for embeds, title in zip(explanation.class_embeds, NAMES, strict=True)
    ]
    confusion = [
        figures.confusion_matrix(labels, guesses, names, title, confused)
        for guesses, title in zip(explanation.predicted, NAMES, strict=True)
    ]
    drawn = {
        "accuracy": [
            figures.accuracy_by_class(labels, before, after, names),
            figures.changed_pairs(labels, before, after, names),
        ],
        "confusion": confusion,
        "similarity": similarity,
        "pca": _maps(explanation, "pca"),
        "tsne": _maps(explanation, "tsne"),
        "reliability": [figures.reliability_diagram(guesses, labels)],
    }
    return {name: [to_svg(figure) for figure in parts] for name, parts in drawn.items()}


def _maps(explanation: Explanation, method: str) -> list[Any]:
    """Both prompts' class embeddings among the same images, on the same axes."""
    chosen, rows = explanation.changed_most(), np.random.default_rng(0).permutation(len(explanation.labels))
    first = np.argsort(~np.isin(explanation.labels[rows], chosen), kind="stable")  # what is coloured has to be there
    rows = np.sort(rows[first][:MAX_MAPPED_IMAGES])
    embeds, labels = explanation.image_embeds[rows], explanation.labels[rows]
    images, *classes = figures.project_embeddings(embeds, explanation.class_embeds, method)
    limits = np.concatenate(classes)
    return [
        figures.embedding_map(images, labels, points, explanation.classnames, title, chosen, limits)
        for points, title in zip(classes, NAMES, strict=True)
    ]


def to_svg(figure: Any) -> Any:
    """A figure as SVG to put into a page: its black is the page's text colour, its text the page's text."""
    from markupsafe import Markup
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hf-coop"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the reader's browser has more fonts
        figure.savefig(file, format="svg", dpi=144, metadata={"Date": None, "Creator": None})
    drawing = file.getvalue()
    start, rest = drawing[drawing.index("<svg") :].split(">", 1)  # the page decides how large it is
    start = re.sub(r' (?:width|height)="[^"]*"', "", start)
    return Markup(f"{start}>{rest}".replace("#000000", "currentColor"))


def _card(explanation: Explanation, names: Sequence[str], row: int, image: Image.Image) -> dict[str, Any]:
    """What the page shows of an image."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    guesses = [(names[int(scores[row].argmax())], float(scores[row].max())) for scores in explanation.probabilities]
    data = base64.b64encode(file.getvalue()).decode()
    return {
        "image": f"data:image/jpeg;base64,{data}",
        "truth": names[int(explanation.labels[row])],
        "guesses": guesses,
    }
