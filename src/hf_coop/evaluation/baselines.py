"""What learned prompts are compared with: hand-written prompts, and heads on the same image features.

Each baseline takes [`FewShotFeatures`] and gives a [`Head`]. All are deterministic.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from torch.nn import functional as F

from .few_shot_features import FewShotFeatures, Head

#: Templates of prompt ensembling by name: CLIP's 80 of ImageNet, and the 7 that CLIP's authors selected of them.
ENSEMBLES: dict[str, list[str]] = json.loads(Path(__file__).with_name("templates.json").read_text(encoding="utf-8"))

LINEAR_PROBE_ITERATIONS = 1000
LINEAR_PROBE_C = 1.0  # without validation images
LINEAR_PROBE_EXPONENTS = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)  # of C
LINEAR_PROBE_STEPS = 8
GDA_ALPHA = 1.0  # without validation images
GDA_ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
NO_VARIANCE = 1e-9  # of features of length 1: rounding
TIP_ADAPTER_PAIR = 1.0, 5.5  # alpha, beta
TIP_ADAPTER_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TIP_ADAPTER_BETAS = (0.5, 1.0, 2.0, 5.5, 10.0, 20.0, 40.0)
CLAP_ITERATIONS = 50


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

    scikit-learn's `LogisticRegression`, L-BFGS with at most 1,000 iterations, on the features before normalisation.
    The inverse strength C of the regularisation is searched as in CoOp's code (`lpclip`): of 1e6, 1e4, …, 1e-6 the
    most accurate on the validation images, the largest of equals; then eight bisections in log space from a tenth to
    ten times that value, each keeping the half towards the better end, the lower one of equals. Without validation
    images C is 1: the shots are too few to hold some back.

    A class without images has the logit -inf.
    """
    if features.val_embeds is None:
        return _logistic_regression(features, LINEAR_PROBE_C)

    @cache
    def fit(exponent: float) -> tuple[Head, float]:
        head = _logistic_regression(features, 10.0**exponent)
        return head, features.validation_accuracy(head(features.val_embeds))

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

    labels = features.train_labels
    present = labels.unique().tolist()
    weight = torch.zeros_like(features.text_embeds)
    bias = torch.full_like(weight[:, 0], -torch.inf)
    bias[present] = 0
    if len(present) > 1:
        probe = LogisticRegression(C=C, max_iter=LINEAR_PROBE_ITERATIONS)
        with warnings.catch_warnings():  # what so many iterations give is what is compared with
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(features.train_embeds.cpu().numpy(), labels.cpu().numpy())
        rows = present[1:] if len(present) == 2 else present  # of two classes, only the second has a row
        weight[rows], bias[rows] = (torch.from_numpy(found).to(weight) for found in (probe.coef_, probe.intercept_))
    return linear_head(weight, bias, normalize=False, C=C)


def gda(features: FewShotFeatures) -> Head:
    r"""Gaussian discriminant analysis beside zero-shot CLIP (arXiv 2402.04087, section 3).

    Classes are Gaussians of normalised image features with means mu_k, one covariance and equal priors, so that the
    log-odds are linear: `w_k = P mu_k` and `b_k = -mu_k' P mu_k / 2`. Of n samples less their class's mean, with
    covariance C, the precision is the published (Kubokawa and Srivastava's) estimate
    `P = D * inverse((n - 1) * C + trace(C) * I)`. The logits are `zero-shot + alpha * (w_k' x + b_k)`.

    alpha is the best on the validation images of 1e-4, 1e-3, …, 100, the smallest of equals, as published; without
    validation images it is 1, at which the two add up as log-probabilities do.

    A class without images has the mean of all classes. Where no class has two different images, as with one shot,
    there is no covariance, and the logits are zero-shot's. (The published code takes ten random views of each shot.)
    """
    images, labels = features.images.cpu().double(), features.train_labels.cpu()  # Apple's GPUs have no double
    counts = torch.bincount(labels, minlength=features.num_classes)[:, None]
    means = images.new_zeros(features.text_embeds.shape).index_add_(0, labels, images) / counts
    means[counts[:, 0] == 0] = means[counts[:, 0] > 0].mean(0)
    centred = images - means[labels]
    scatter = centred.mT @ centred
    trace = scatter.trace() / max(1, len(centred) - 1)
    if trace < NO_VARIANCE:
        return zero_shot(features)
    width = len(scatter)
    regularised = scatter + trace * torch.eye(width).to(scatter)
    weight = width * torch.linalg.solve(regularised, means.mT).mT
    bias = -(weight * means).sum(-1) / 2
    by_text = features.zero_shot_weight

    def mixed(alpha: float) -> Head:
        return linear_head(by_text + (alpha * weight).to(by_text), (alpha * bias).to(by_text), alpha=alpha)

    if features.val_embeds is None:
        return mixed(GDA_ALPHA)
    return max(map(mixed, GDA_ALPHAS), key=lambda head: features.validation_accuracy(head(features.val_embeds)))


def tip_adapter(features: FewShotFeatures) -> Head:
    """Tip-Adapter without training (arXiv 2207.09519, section 3): the shots as a key-value cache.

    `logits = zero-shot + alpha * sum over shots i of exp(-beta * (1 - x' k_i)) * onehot(label_i)`, where x is the
    normalised image feature and k_i that of a shot.

    (alpha, beta) is (1, 5.5), as in the paper; another pair of `TIP_ADAPTER_ALPHAS` and `TIP_ADAPTER_BETAS` where that
    is more accurate on the validation images. (The published code searches a denser grid, with another range for each
    data set.)
    """
    keys, labels = features.images, features.train_labels

    def cache_logits(embeds: torch.Tensor, beta: float) -> torch.Tensor:
        affinity = (beta * (keys @ F.normalize(embeds, dim=-1).mT - 1)).exp()  # (N, B)
        return affinity.new_zeros(features.num_classes, len(embeds)).index_add_(0, labels, affinity).mT

    def head(alpha: float, beta: float) -> Head:
        def logits(embeds: torch.Tensor) -> torch.Tensor:
            return zero_shot_head(embeds) + alpha * cache_logits(embeds, beta)

        return Head(logits, {"alpha": alpha, "beta": beta})

    zero_shot_head = zero_shot(features)
    best = TIP_ADAPTER_PAIR
    if features.val_embeds is not None:
        by_text = zero_shot_head(features.val_embeds)
        by_cache = {beta: Head(partial(cache_logits, beta=beta))(features.val_embeds) for beta in TIP_ADAPTER_BETAS}
        pairs = [best, *product(TIP_ADAPTER_ALPHAS, TIP_ADAPTER_BETAS)]
        best = max(pairs, key=lambda pair: features.validation_accuracy(by_text + pair[0] * by_cache[pair[1]]))
    return head(*best)


@torch.inference_mode(False)
@torch.enable_grad()
def clap(features: FewShotFeatures) -> Head:
    r"""A linear probe that starts at the class names and is kept near them (CLAP, arXiv 2312.12730).

    Logits are `s * cos(image, w_k)` with `s = exp(logit_scale)`. From the class names' text features t_k, of length 1,
    the weights move to the minimum of `mean cross-entropy + mean over k of lambda_k * s * |w_k - t_k|^2`, where
    lambda_k is the mean probability that zero-shot CLIP gives class k on its own shots: what CLIP knows well stays as
    it is. Nothing is searched, so validation images are not looked at. A class without images has `lambda_k = 1`.

    The published code takes 300 epochs of SGD, on text features of the length that the tower gives them. L-BFGS goes
    to the minimum directly, in at most 50 iterations, and the factor s makes the balance of the two terms independent
    of that length.
    """
    images, labels = features.images, features.train_labels.clone()  # inference mode's tensors have no gradients
    text = F.normalize(features.text_embeds, dim=-1)
    one_hot = F.one_hot(labels, features.num_classes).to(images)  # (N, K)
    probabilities = F.linear(images, features.zero_shot_weight).softmax(-1)
    counts = one_hot.sum(0)
    multipliers = torch.where(counts > 0, (probabilities * one_hot).sum(0) / counts.clamp(min=1), 1.0)
    weight = text.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=CLAP_ITERATIONS, tolerance_change=1e-5, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features.logit_scale * F.linear(images, F.normalize(weight, dim=-1))
        apart = (weight - text).square().sum(-1)  # (K,)
        value = F.cross_entropy(logits, labels) + features.logit_scale * (multipliers * apart).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return linear_head(features.logit_scale * F.normalize(weight.detach(), dim=-1))


@dataclass(frozen=True)
class Baseline:
    """A baseline by name: how its head is fitted, and from which hand-written prompts.

    Attributes:
        label (`str`): as tables call it.
        fit: from [`FewShotFeatures`] to a [`Head`].
        ensemble (`str`, *optional*): a key of `ENSEMBLES`; without one, the set's own template.
    """

    label: str
    fit: Callable[[FewShotFeatures], Head]
    ensemble: str | None = None

    @property
    def learns(self) -> bool:
        """Whether it looks at images; those that do not can be asked about any class names."""
        return self.fit is not zero_shot

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
    "zero_shot": Baseline("zero-shot", zero_shot),
    "ensemble_7": Baseline("ensemble of 7", zero_shot, "imagenet_7"),
    "ensemble_80": Baseline("ensemble of 80", zero_shot, "imagenet_80"),
    "linear_probe": Baseline("linear probe", linear_probe),
    "gda": Baseline("GDA", gda),
    "tip_adapter": Baseline("Tip-Adapter", tip_adapter),
    "clap": Baseline("CLAP", clap),
}
