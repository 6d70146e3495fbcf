"""What learned prompts are compared with, beside hand-written ones: heads on the same image features."""

from __future__ import annotations

import numpy as np

LINEAR_PROBE_ITERATIONS = 1000


def linear_probe(
    train_embeds: np.ndarray, train_labels: np.ndarray, test_embeds: np.ndarray, C: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Probabilities `(N, classes)` of a logistic regression on image features, as CLIP's paper compares with.

    Args:
        train_embeds (`np.ndarray` of shape `(n, D)`), train_labels (`np.ndarray` of shape `(n,)`): every class is
            among them.
        test_embeds (`np.ndarray` of shape `(N, D)`).
        C (`float`): inverse strength of the regularisation.
        seed (`int`): of the solver.
    """
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=C, max_iter=LINEAR_PROBE_ITERATIONS, random_state=seed)
    return probe.fit(train_embeds, train_labels).predict_proba(test_embeds)
