"""How good a prompt is, what it is compared with, and what it looks like."""

from .baselines import BASELINES, ENSEMBLES, Baseline
from .card_figures import CardFigures
from .few_shot_features import FewShotFeatures, Head
from .figures import plot_training_curves
from .metrics import (
    Guesses,
    accuracies_told,
    classification_metrics,
    expected_calibration_error,
    none_of_these_threshold,
)
from .nearest_words import nearest_words

__all__ = [
    "BASELINES",
    "ENSEMBLES",
    "Baseline",
    "CardFigures",
    "FewShotFeatures",
    "Guesses",
    "Head",
    "accuracies_told",
    "classification_metrics",
    "expected_calibration_error",
    "nearest_words",
    "none_of_these_threshold",
    "plot_training_curves",
]
