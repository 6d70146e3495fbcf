"""Baselines on real features of the embedded CLIP, against scikit-learn and formulas written out."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_coop import HFCoOp
from hf_coop.data.features import encode_images
from hf_coop.data.few_shot import few_shot_indices
from hf_coop.demo import CLASSNAMES, DEMO_CLIP, load_digits_dataset
from hf_coop.evaluation import BASELINES, ENSEMBLES, FewShotFeatures
from hf_coop.evaluation.baselines import (
    GDA_ALPHAS,
    TIP_ADAPTER_ALPHAS,
    TIP_ADAPTER_BETAS,
    clap,
    gda,
    linear_probe,
    search_exponent,
    tip_adapter,
    zero_shot,
)

TEMPLATE = "a photo of a {}."
FITTED = ["linear_probe", "gda", "tip_adapter", "clap"]


@pytest.fixture(scope="module")
def digits() -> SimpleNamespace:
    """Features of 16 shots and 4 validation images a digit, of 300 test images, and of the class names."""
    model = HFCoOp.from_clip(DEMO_CLIP, CLASSNAMES)
    splits = load_digits_dataset()
    rows = few_shot_indices(splits["train"]["label"][:], 20, seed=1)
    train = [row for i, row in enumerate(rows) if i % 20 < 16]
    val = [row for i, row in enumerate(rows) if i % 20 >= 16]
    found = SimpleNamespace(text=model.template_embeddings(TEMPLATE), scale=model.logit_scale.detach(), model=model)
    for name, split, chosen in (("train", "train", train), ("val", "train", val), ("test", "test", range(300))):
        images = splits[split].select(chosen)
        setattr(found, name, encode_images(model, images)[:, 0])
        setattr(found, f"{name}_labels", torch.tensor(images["label"][:]))
    return found


def shots(digits: SimpleNamespace, count: int = 16, validation: bool = False, classes: int = 10) -> FewShotFeatures:
    """`count` shots of the first `classes` digits; the text features are always those of ten."""
    rows = [i for i, k in enumerate(digits.train_labels.tolist()) if i % 16 < count and k < classes]
    val = (digits.val, digits.val_labels) if validation else ()
    return FewShotFeatures(digits.train[rows], digits.train_labels[rows], digits.text, digits.scale, *val)


def accuracy(digits: SimpleNamespace, logits: torch.Tensor) -> float:
    return float((logits.argmax(-1) == digits.test_labels).float().mean())


def weights_of(head, width: int) -> torch.Tensor:
    """The weights `(K, D)` of a linear head without bias."""
    return head(torch.eye(width)).mT.contiguous()


class TestAll:
    @pytest.mark.parametrize("validation", [False, True])
    @pytest.mark.parametrize("name", FITTED)
    def test_16_shots_beat_zero_shot(self, digits, name, validation):
        features = shots(digits, validation=validation)
        head = BASELINES[name].fit(features)
        logits = head(digits.test)
        assert logits.shape == (300, 10)
        assert accuracy(digits, logits) > accuracy(digits, zero_shot(features)(digits.test)) + 0.03
        torch.testing.assert_close(BASELINES[name].fit(features)(digits.test), logits, rtol=0, atol=0)

    @pytest.mark.parametrize("name", BASELINES)
    @pytest.mark.parametrize("count", [1, 2])
    def test_few_shots(self, digits, name, count):
        logits = BASELINES[name].fit(shots(digits, count, validation=True))(digits.test)
        assert logits.isfinite().all()

    @pytest.mark.parametrize("name", BASELINES)
    def test_one_class(self, digits, name):
        features = FewShotFeatures(digits.train[:4], [0] * 4, digits.text[:1], digits.scale, digits.val[:1], [0])
        assert BASELINES[name].fit(features)(digits.test).isfinite().all()

    @pytest.mark.parametrize("name", BASELINES)
    def test_a_class_without_images(self, digits, name):
        """The others are told apart as ever; the linear probe never predicts it, the rest know its name."""
        features = shots(digits, classes=9, validation=True)
        logits = BASELINES[name].fit(features)(digits.test)
        assert logits[:, :9].isfinite().all()
        seen = digits.test_labels < 9
        right = logits[:, :9].argmax(-1)[seen] == digits.test_labels[seen]
        by_text = zero_shot(features)(digits.test)[:, :9].argmax(-1)[seen] == digits.test_labels[seen]
        assert right.float().mean() >= by_text.float().mean()
        if name == "linear_probe":
            assert (logits[:, 9] == -torch.inf).all()
        else:
            assert logits[:, 9].isfinite().all()

    @pytest.mark.parametrize("name", FITTED)
    def test_the_length_of_text_features_does_not_matter(self, digits, name):
        labels = digits.train_labels
        scaled = FewShotFeatures(digits.train, labels, 27 * digits.text, digits.scale)
        expected = BASELINES[name].fit(shots(digits))(digits.test)
        torch.testing.assert_close(BASELINES[name].fit(scaled)(digits.test), expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train_embeds": torch.zeros(0, 4), "train_labels": []}, "train_embeds has no images"),
            ({"train_embeds": torch.ones(3, 5)}, r"train_embeds must have shape \(N, 4\).*got \(3, 5\)"),
            ({"train_labels": [0, 1]}, "train_labels must be 3 labels"),
            ({"train_labels": [0, 1, 2]}, "train_labels holds 2, but labels go from 0 to 1"),
            ({"train_labels": [0, 1, -1]}, "train_labels holds -1"),
            ({"train_embeds": torch.full((3, 4), math.nan)}, "train_embeds holds numbers that are not finite"),
            ({"text_embeds": torch.ones(4)}, r"text_embeds must have shape \(K, D\), got \(4,\)"),
            ({"val_embeds": torch.ones(1, 4)}, "val_embeds and val_labels go together"),
            ({"val_embeds": torch.ones(1, 4), "val_labels": [7]}, "val_labels holds 7"),
        ],
    )
    def test_bad_input(self, change, message):
        good = {"train_embeds": torch.ones(3, 4), "train_labels": [0, 1, 1], "text_embeds": torch.ones(2, 4)}
        with pytest.raises(ValueError, match=message):
            FewShotFeatures(**{"logit_scale": 1.0, **good, **change})


class TestEnsembles:
    def test_templates(self):
        own = "a photo of a {}, a type of pet."
        assert len(set(ENSEMBLES["imagenet_80"])) == 80
        assert set(ENSEMBLES["imagenet_7"]) < set(ENSEMBLES["imagenet_80"])
        assert BASELINES["zero_shot"].templates(own, "oxford_pets") == [own]
        assert BASELINES["ensemble_7"].templates(own, "oxford_pets") == [*ENSEMBLES["imagenet_7"], own]
        assert BASELINES["ensemble_7"].templates(own, "imagenet") == ENSEMBLES["imagenet_7"]
        assert BASELINES["ensemble_80"].templates(own) == ENSEMBLES["imagenet_80"]

    def test_class_weights_are_the_normalised_mean(self, digits):
        templates = BASELINES["ensemble_7"].templates(TEMPLATE)
        text = digits.model.template_embeddings(templates)
        features = FewShotFeatures(digits.train, digits.train_labels, text, digits.scale)
        each = torch.stack([digits.model.template_embeddings(template) for template in templates])
        expected = F.normalize(digits.test, dim=-1) @ F.normalize(each.mean(0), dim=-1).mT * digits.scale.exp()
        found = BASELINES["ensemble_7"].fit(features)(digits.test)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, digits.model.zero_shot_logits(digits.test, templates), rtol=1e-5, atol=1e-5)


class TestLinearProbe:
    @pytest.mark.parametrize("classes", [2, 10])
    def test_is_scikit_learns(self, digits, classes):
        from sklearn.linear_model import LogisticRegression

        features = shots(digits, classes=classes)
        head = linear_probe(features)
        probe = LogisticRegression(max_iter=1000).fit(features.train_embeds.numpy(), features.train_labels.numpy())
        probabilities = head(digits.test).softmax(-1).numpy()
        np.testing.assert_allclose(probabilities[:, :classes], probe.predict_proba(digits.test.numpy()), atol=1e-5)
        assert head.settings == {"C": 1.0}

    @pytest.mark.parametrize(
        "accuracy",
        [
            lambda C: -abs(math.log10(C) - 0.3),
            lambda C: -abs(math.log10(C) + 5.7),
            lambda C: round(math.sin(math.log10(C)), 1),
            lambda C: 0.5,
        ],
    )
    def test_the_search_is_the_published_one(self, accuracy):
        """`lpclip/linear_probe.py` step by step, in C itself."""
        grid = [1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6]
        peak = grid[int(np.argmax([accuracy(C) for C in grid]))]
        left, right = 1e-1 * peak, 1e1 * peak
        for _ in range(8):
            middle = math.sqrt(left * right)
            if accuracy(left) < accuracy(right):
                final, left = right, middle
            else:
                final, right = left, middle
        assert 10 ** search_exponent(lambda exponent: accuracy(10.0**exponent)) == pytest.approx(final)

    def test_c_is_chosen_on_validation_images(self, digits):
        features = shots(digits, validation=True)
        head = linear_probe(features)
        alone = FewShotFeatures(digits.train, digits.train_labels, digits.text, digits.scale)
        assert head.settings["C"] != 1.0
        chosen = (head(digits.val).argmax(-1) == digits.val_labels).float().mean()
        fixed = (linear_probe(alone)(digits.val).argmax(-1) == digits.val_labels).float().mean()
        assert chosen >= fixed


class TestGDA:
    def test_is_scikit_learns_with_the_same_shrinkage(self, digits):
        """The published precision is that of linear discriminant analysis with shrinkage, but for a factor."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        features = shots(digits)
        images, labels = F.normalize(features.train_embeds, dim=-1), features.train_labels
        n, width = images.shape
        ratio = width / (n - 1)
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=ratio / (1 + ratio), priors=[0.1] * 10)
        lda.fit(images.double().numpy(), labels.numpy())
        test = F.normalize(digits.test, dim=-1)
        scores = torch.from_numpy(test.double().numpy() @ lda.coef_.T + lda.intercept_ - math.log(0.1))
        expected = zero_shot(features)(digits.test) + width / (n * (1 + ratio)) * scores
        torch.testing.assert_close(gda(features)(digits.test).double(), expected, rtol=1e-4, atol=1e-4)

    def test_alpha_is_the_smallest_of_the_best_on_validation_images(self, digits):
        alpha = gda(shots(digits, validation=True)).settings["alpha"]
        by_text = zero_shot(shots(digits))(digits.val)
        term = gda(shots(digits))(digits.val) - by_text  # at alpha = 1
        right = [int(((by_text + a * term).argmax(-1) == digits.val_labels).sum()) for a in GDA_ALPHAS]
        assert alpha == GDA_ALPHAS[right.index(max(right))]

    def test_without_a_covariance_it_is_zero_shot(self, digits):
        for features in (
            shots(digits, count=1),
            FewShotFeatures(digits.train[[0, 0, 16]], [0, 0, 1], digits.text, digits.scale),
        ):
            torch.testing.assert_close(gda(features)(digits.test), zero_shot(features)(digits.test))


class TestTipAdapter:
    @staticmethod
    def by_hand(features: FewShotFeatures, images: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
        images, keys = (F.normalize(embeds, dim=-1).double() for embeds in (images, features.train_embeds))
        logits = features.logit_scale * images @ features.text_embeds.double().mT
        for key, label in zip(keys, features.train_labels.tolist(), strict=True):
            logits[:, label] += alpha * torch.exp(-beta * (1 - images @ key))
        return logits

    def test_by_hand(self, digits):
        features = shots(digits)
        head = tip_adapter(features)
        assert head.settings == {"alpha": 1.0, "beta": 5.5}
        expected = self.by_hand(features, digits.test, 1.0, 5.5)
        torch.testing.assert_close(head(digits.test).double(), expected, rtol=1e-4, atol=1e-4)

    def test_settings_are_the_best_on_validation_images(self, digits):
        features = shots(digits, count=2, validation=True)

        def right(alpha: float, beta: float) -> int:
            return int((self.by_hand(features, digits.val, alpha, beta).argmax(-1) == digits.val_labels).sum())

        found = tip_adapter(features).settings
        best = max(right(alpha, beta) for alpha in TIP_ADAPTER_ALPHAS for beta in TIP_ADAPTER_BETAS)
        assert right(**found) == best > right(1.0, 5.5)

    def test_equals_stay_at_the_papers_settings(self, digits):
        labels = torch.zeros(len(digits.val), dtype=torch.long)
        one = FewShotFeatures(digits.train[:16], [0] * 16, digits.text[:1], digits.scale, digits.val, labels)
        assert tip_adapter(one).settings == {"alpha": 1.0, "beta": 5.5}


class TestCLAP:
    def test_is_at_the_minimum_of_its_objective(self, digits):
        """Written out in double precision: no step from the weights' directions, at any length, is downhill."""
        features = shots(digits, count=4)
        images, text = F.normalize(features.train_embeds, dim=-1).double(), digits.text.double()
        labels, scale = features.train_labels, digits.scale.exp().double()
        probabilities = (scale * images @ text.mT).softmax(-1)
        multipliers = torch.stack([probabilities[labels == k, k].mean() for k in range(10)])

        def objective(weight: torch.Tensor) -> torch.Tensor:
            logits = scale * images @ F.normalize(weight, dim=-1).mT
            apart = (weight - text).square().sum(-1)
            return F.cross_entropy(logits, labels) + scale * (multipliers * apart).mean()

        directions = F.normalize(weights_of(clap(features), text.shape[1]).double(), dim=-1)
        lengths = (directions * text).sum(-1, keepdim=True)  # what minimises |w - t| at a direction
        weight = (lengths * directions).requires_grad_()
        found = objective(weight)
        optimizer = torch.optim.LBFGS([weight], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = objective(weight)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert found < objective(text) - 0.05
        assert found - objective(weight) < 1e-4

    def test_works_in_inference_mode(self, digits):
        with torch.inference_mode():
            logits = clap(shots(digits))(digits.test)
        torch.testing.assert_close(logits, clap(shots(digits))(digits.test))
