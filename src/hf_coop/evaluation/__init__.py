"""How good a prompt is, what it is compared with, and what it looks like."""

from .baselines import linear_probe
from .figures import plot_training_curves
from .metrics import classification_metrics, expected_calibration_error
from .nearest_words import nearest_words

__all__ = [
    "classification_metrics",
    "expected_calibration_error",
    "linear_probe",
    "nearest_words",
    "plot_training_curves",
]
