"""Metrics of a classifier from its probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..encoding import distinct_classnames

CALIBRATION_BINS = 15
KEPT = 0.95  # the share of images of the classes that a threshold for "none of these" is to let through


class Guesses(NamedTuple):
    """What a prompt takes images for, and how sure it is.

    Attributes:
        predicted (`np.ndarray` of shape `(N,)`): classes.
        confidence (`np.ndarray` of shape `(N,)`): their softmax scores.
    """

    predicted: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray) -> Guesses:
        """Those of softmax scores `(N, K)`."""
        return cls(probabilities.argmax(1), probabilities.max(1))

    def calibration_error(self, labels: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
        """As [`expected_calibration_error`]."""
        confidence = self.confidence.astype(np.float64)
        gaps = np.bincount(bins_of(confidence, bins), weights=(self.predicted == labels) - confidence, minlength=bins)
        return float(np.abs(gaps).sum() / len(labels))


def classification_metrics(
    probabilities: np.ndarray, labels: Sequence[int] | np.ndarray, classnames: Sequence[str]
) -> dict[str, Any]:
    """How good predictions are, and how far their confidence can be trusted.

    Args:
        probabilities (`np.ndarray` of shape `(N, K)`): softmax scores.
        labels (`Sequence[int]`): the N right classes.
        classnames (`Sequence[str]`): K names.

    Returns:
        `accuracy`, `top5_accuracy` (all classes count where there are fewer than five), `macro_f1` (the mean over the
        classes that `labels` holds, as Dassl's evaluator takes it), `ece` (see [`expected_calibration_error`]),
        `num_samples`, and `per_class_accuracy`, by name, of the classes that `labels` holds; equal names are told
        apart by their labels, "missile (label 657)".

    Raises:
        ValueError: there are no samples.
    """
    from sklearn.metrics import f1_score

    if len(labels) == 0:
        raise ValueError("no samples to evaluate")
    labels, predicted = np.asarray(labels), probabilities.argmax(1)
    correct = predicted == labels
    top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    present, keys = np.unique(labels), distinct_classnames(classnames)
    return {
        "accuracy": float(correct.mean()),
        "top5_accuracy": float((top5 == labels[:, None]).any(1).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro", labels=present, zero_division=0)),
        "ece": expected_calibration_error(probabilities, labels),
        "num_samples": len(labels),
        "per_class_accuracy": {keys[k]: float(correct[labels == k].mean()) for k in present},
    }


def accuracies_told(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each accuracy of a run on images that it did not learn from, or what to do where there is none.

    Args:
        scores: of "zero_shot" and "learned", from [`classification_metrics`]; of "cross_validation", with `accuracy`,
            `std` and `folds`. Each may be missing.
    """
    found = {name: scores[name] for name in ("zero_shot", "learned") if name in scores}
    lines = [
        f"{name.replace('_', '-')} accuracy: {score['accuracy']:.2%} of {score['num_samples']} test images"
        for name, score in found.items()
    ]
    if folds := scores.get("cross_validation"):
        told = f"{folds['accuracy']:.2%} ± {folds['std']:.2%} over {len(folds['folds'])} folds of the training images"
        lines.append(f"cross-validated accuracy: {told}")
    nothing = "no test images, so nothing was measured: give --test_dir, --test_size 0.2 or --cv_folds 5"
    return "\n".join(lines or [nothing])


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    r"""The expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3) over equally wide bins.

    `sum over b of |B_b| / N * |accuracy(B_b) - confidence(B_b)|`, where `B_b` are the samples whose highest score lies
    in `(b / bins, (b + 1) / bins]`.

    Args:
        probabilities (`np.ndarray` of shape `(N, K)`): of each class.
        labels (`np.ndarray` of shape `(N,)`): the true classes.
        bins (`int`): how many.
    """
    return Guesses.of(probabilities).calibration_error(labels, bins)


def bins_of(confidence: np.ndarray, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """The bin b of each confidence, which lies in `(b / bins, (b + 1) / bins]`."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def none_of_these_threshold(probabilities: np.ndarray) -> float:
    """The score below which an image is rather of none of the classes: 95 % of images of the classes reach it.

    The highest softmax score as a detector of other images (Hendrycks and Gimpel 2017, arXiv 1610.02136), at the true
    positive rate that is customary for it.

    Args:
        probabilities (`np.ndarray` of shape `(N, K)`): softmax scores of images of the classes, held out in training.
    """
    lowest = np.quantile(probabilities.max(1), 1 - KEPT, method="lower")
    return float(np.floor(lowest * 1e4) / 1e4)
