"""What learned prompts are compared with: hand-written prompts, and heads on the same image features.

Each baseline takes [`FewShotFeatures`] and gives a [`Head`]. All are deterministic.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

from .few_shot_features import FewShotFeatures, Head

#: Templates of prompt ensembling by name: CLIP's 80 of ImageNet, and the 7 that CLIP's authors selected of them.
ENSEMBLES: dict[str, list[str]] = json.loads(Path(__file__).with_name("templates.json").read_text(encoding="utf-8"))

LINEAR_PROBE_ITERATIONS = 1000
LINEAR_PROBE_C = 1.0  # without validation images
LINEAR_PROBE_EXPONENTS = (6, 4, 2, 0, -2, -4, -6)  # of C
LINEAR_PROBE_STEPS = 8


def linear_head(
    weight: torch.Tensor, bias: torch.Tensor | None = None, normalize: bool = True, **settings: float
) -> Head:
    """The head `weight @ x + bias` of the image features x, normalised first unless `normalize` is off."""

    def logits(embeds: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(embeds, dim=-1) if normalize else embeds, weight, bias)

    return Head(logits, settings)


def zero_shot(features: FewShotFeatures) -> Head:
    """CLIP's own logits from hand-written prompts, `exp(logit_scale) * cos(image, text_k)`; no image is looked at."""
    return linear_head(features.zero_shot_weight)


def linear_probe(features: FewShotFeatures) -> Head:
    """L2-regularised logistic regression on image features, as CoOp's paper compares with (arXiv 2109.01134).

    scikit-learn's `LogisticRegression`, L-BFGS with at most 1,000 iterations, on the features before normalisation,
    every view of a shot a sample. The inverse strength C of the regularisation is searched as in CoOp's code
    (`lpclip`): of 1e6, 1e4, …, 1e-6 the most accurate on the validation images, the largest of equals; then eight
    bisections in log space from a tenth to ten times that value, each keeping the half towards the better end, the
    lower one of equals. Without validation images C is 1.

    A class without images has the logit -inf.
    """
    if features.val_embeds is None:
        return _logistic_regression(features, LINEAR_PROBE_C)

    @cache
    def fit(exponent: float) -> tuple[Head, float]:
        head = _logistic_regression(features, 10.0**exponent)
        return head, features.validation_accuracy(head)

    return fit(search_exponent(lambda exponent: fit(exponent)[1]))[0]


def search_exponent(accuracy: Callable[[float], float]) -> float:
    """The exponent of C that the linear probe's search ends at (see [`linear_probe`]).

    Args:
        accuracy: on the validation images, of C = 10 to the power of its argument.
    """
    peak = max(LINEAR_PROBE_EXPONENTS, key=accuracy)
    low, high = peak - 1, peak + 1
    for _ in range(LINEAR_PROBE_STEPS):
        best = high if accuracy(low) < accuracy(high) else low
        low, high = ((low + high) / 2, high) if best == high else (low, (low + high) / 2)
    return best


def _logistic_regression(features: FewShotFeatures, C: float) -> Head:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    embeds, labels = features.views
    present = labels.unique().tolist()
    weight = torch.zeros_like(features.text_embeds)
    bias = torch.full_like(weight[:, 0], -torch.inf)
    bias[present] = 0
    if len(present) > 1:
        probe = LogisticRegression(C=C, max_iter=LINEAR_PROBE_ITERATIONS)
        with warnings.catch_warnings():  # what so many iterations give is what is compared with
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(embeds.cpu().numpy(), labels.cpu().numpy())
        rows = present[1:] if len(present) == 2 else present  # of two classes, only the second has a row
        weight[rows], bias[rows] = (torch.from_numpy(found).to(weight) for found in (probe.coef_, probe.intercept_))
    return linear_head(weight, bias, normalize=False, C=C)


@dataclass(frozen=True)
class Baseline:
    """A baseline by name: how its head is fitted, and from which hand-written prompts.

    Attributes:
        fit: from [`FewShotFeatures`] to a [`Head`].
        ensemble (`str`, *optional*): a key of `ENSEMBLES`; without one, the set's own template.
    """

    fit: Callable[[FewShotFeatures], Head]
    ensemble: str | None = None

    def templates(self, template: str, benchmark: str | None = None) -> list[str]:
        """The hand-written prompts whose class embeddings ([`HFCoOp.template_embeddings`]) `fit` takes.

        As published, the 7 templates stand beside the set's own except on ImageNet, and the 80 alone.

        Args:
            template (`str`): the set's own.
            benchmark (`str`, *optional*): its name, where it is one.
        """
        if self.ensemble is None:
            return [template]
        alone = self.ensemble == "imagenet_80" or benchmark == "imagenet"
        return ENSEMBLES[self.ensemble] + ([] if alone else [template])


#: All baselines by the name that the command takes.
BASELINES = {
    "zero_shot": Baseline(zero_shot),
    "ensemble_7": Baseline(zero_shot, "imagenet_7"),
    "ensemble_80": Baseline(zero_shot, "imagenet_80"),
    "linear_probe": Baseline(linear_probe),
}
