"""Figures of two prompts, with few classes and with a thousand, from made features."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hostile_names import Page
from PIL import Image

from hf_coop.evaluation import Guesses
from hf_coop.evaluation import prompt_figures as figures
from hf_coop.evaluation.report import Explanation, render_report, to_svg


def made(names: list[str], per_class: int = 4, seed: int = 0) -> Explanation:
    """Classes around random centres; the learned prompt is nearer to them than the hand-written one."""
    rng, classes = np.random.default_rng(seed), len(names)
    centres, labels = rng.normal(size=(classes, 16)), np.repeat(np.arange(classes), per_class)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    images = unit(centres[labels] + rng.normal(size=(len(labels), 16)))
    embeds = tuple(unit(centres + noise * rng.normal(size=centres.shape)) for noise in (1.0, 0.3))
    scores = [np.exp(10 * images @ part.T) for part in embeds]
    probabilities = tuple(score / score.sum(1, keepdims=True) for score in scores)
    words = {None: [[("word", 1.0), ("<b>", 2.0)]]}
    return Explanation(
        "What it learned", {"data": "<i>x</i>"}, names, "a {}.", labels, images, embeds, probabilities, words
    )


def report_of(explanation: Explanation) -> str:
    rows = [*explanation.put(True), *explanation.put(False)]
    return render_report(explanation, {row: Image.new("RGB", (300, 200), (9, 99, 199)) for row in rows})


def texts(figure) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", to_svg(figure))


class TestReport:
    def test_nothing_is_loaded_from_elsewhere(self):
        page = report_of(made(["cat", "dog"]))
        for tag, attributes in Page(page).tags:
            for name in ("src", "href", "xlink:href", "data"):
                if (value := attributes.get(name)) is not None:
                    assert value.startswith(("data:image/", "#")), (tag, name, value)
        assert "url(http" not in page
        assert "@import" not in page

    def test_ids_are_of_one_drawing_each(self):
        """Drawings on one page share a space of names: what one refers to must not be another's."""
        page = report_of(made(list("abcdefg")))
        defined: dict[str, str] = {}
        for found in re.finditer(
            r"<(clipPath|path|image|g)[^>]* id=\"([pm][0-9a-f]{8,})\"[^>]*>.*?(?=</clipPath>|/>|$)", page
        ):
            assert defined.setdefault(found[2], found[0]) == found[0]

    @pytest.mark.parametrize("classes", [1, 2, 60])
    def test_any_number_of_classes(self, classes):
        page = report_of(made([f"class {k}" for k in range(classes)], per_class=2))
        assert page.count("<svg") == page.count("</svg>") == 11
        assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)

    def test_images_that_changed_sides(self):
        explanation = made(list("abcde"), per_class=20)
        before, after = explanation.predicted
        for right in (True, False):
            rows = explanation.put(right)
            assert rows
            assert all(
                ((after == explanation.labels)[row], (before == explanation.labels)[row]) == (right, not right)
                for row in rows
            )
            assert np.bincount(explanation.labels[rows]).max() <= 2


class TestFigures:
    def test_a_thousand_classes_are_thinned(self):
        explanation = made([f"class {k}" for k in range(1000)], per_class=2)
        before, after = explanation.predicted
        names, labels = explanation.classnames, explanation.labels
        order = figures.similarity_order(explanation.class_embeds[0])
        assert sorted(order) == list(range(1000))
        shown = figures.most_confused(labels, before, after, classes=1000)
        for figure in (
            figures.class_similarity(explanation.class_embeds[0], names, order=order),
            figures.confusion_matrix(labels, before, names, classes=shown),
            figures.accuracy_by_class(labels, before, after, names),
            figures.changed_pairs(labels, before, after, names),
        ):
            found = [text for text in texts(figure) if text.startswith("class ")]
            assert 10 <= len(found) <= 50

    def test_similar_classes_stand_together(self):
        rng = np.random.default_rng(0)
        embeds = np.eye(4)[np.arange(40) % 4] + 0.01 * rng.normal(size=(40, 4))
        groups = np.array(figures.similarity_order(embeds)) % 4
        assert (np.diff(groups) != 0).sum() == 3

    def test_the_classes_in_most_mistakes(self):
        labels, guesses = np.array([0, 1, 2, 3, 4, 4]), np.array([0, 1, 3, 2, 2, 4])
        assert figures.most_confused(labels, guesses, classes=5, count=2) == [2, 3]
        assert figures.most_confused(labels, guesses, classes=5) == [0, 1, 2, 3, 4]

    def test_changed_pairs_by_hand(self):
        labels = np.array([0, 0, 0, 1, 1, 2])
        before, after = np.array([1, 1, 0, 1, 0, 2]), np.array([0, 0, 0, 1, 2, 2])
        found = texts(figures.changed_pairs(labels, before, after, ["cat", "dog", "owl"]))
        order = [text for text in found if "taken for" in text]
        assert order == ["cat taken for dog", "dog taken for cat", "dog taken for owl"]
        assert "nothing changed" in texts(figures.changed_pairs(labels, before, before, ["cat", "dog", "owl"]))

    def test_accuracy_where_every_class_has_the_same(self):
        labels = np.array([0, 1, 2])
        (axes,) = figures.accuracy_by_class(labels, labels, labels, ["cat", "dog", "owl"]).axes
        assert axes.get_xlim() == (-5, 105)

    def test_accuracy_by_class_by_hand(self):
        labels, before = np.array([0, 0, 1, 1, 3]), np.array([0, 1, 1, 1, 3])
        after = np.array([0, 0, 1, 0, 3])
        accuracy = figures.class_accuracy(labels, before, 4)
        np.testing.assert_array_equal(accuracy, [0.5, 1.0, np.nan, 1.0])
        found = texts(figures.accuracy_by_class(labels, before, after, ["cat", "dog", "none", "owl"]))
        assert "Classes: 1 gained, 1 lost, 1 stayed" in found
        assert [text for text in found if text in ("cat", "dog", "none", "owl")] == ["cat", "owl", "dog"]

    @pytest.mark.parametrize("method", ["pca", "tsne"])
    def test_maps_keep_neighbours(self, method):
        explanation = made(list("abcd"), per_class=15)
        images, before, after = figures.project_embeddings(explanation.image_embeds, explanation.class_embeds, method)
        assert images.shape == (60, 2)
        assert before.shape == after.shape == (4, 2)
        again = figures.project_embeddings(explanation.image_embeds, explanation.class_embeds, method)[0]
        np.testing.assert_allclose(images, again)
        means = np.stack([images[explanation.labels == k].mean(0) for k in range(4)])
        nearest = np.linalg.norm(images[:, None] - means, axis=-1).argmin(1)
        assert (nearest == explanation.labels).mean() > 0.6

    def test_pca_moves_all_class_embeddings_alike(self):
        """Equal embeddings of both prompts are equal points."""
        explanation = made(list("abcd"))
        same = explanation.class_embeds[0]
        _, before, after = figures.project_embeddings(explanation.image_embeds, (same, same))
        np.testing.assert_allclose(before, after)

    def test_an_unknown_map(self):
        with pytest.raises(ValueError, match="pca or tsne, got 'umap'"):
            figures.project_embeddings(np.eye(3), [np.eye(3)], "umap")

    def test_the_reliability_diagram_tells_the_calibration_error(self):
        scores = np.array([[0.95, 0.05]] * 4 + [[0.45, 0.55]] * 2)
        labels = np.array([0, 0, 1, 1, 1, 1])
        guesses = {"hand-written": Guesses.of(scores), "learned": Guesses.of(np.eye(2)[labels])}
        found = texts(figures.reliability_diagram(guesses, labels))
        assert "hand-written: calibration error 45.0" in found
        assert "learned: calibration error 0.0" in found
