"""Metrics, and the baselines that learned prompts are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CLASSNAMES
from torch.nn import functional as F

from hf_coop import HFCoOp
from hf_coop.encoding import template_embeddings
from hf_coop.evaluation.metrics import accuracies_told, classification_metrics, expected_calibration_error

NAMES = list("abcdefg")


def one_hot_like(predicted: list[int], confidence: float = 0.7) -> np.ndarray:
    scores = np.full((len(predicted), len(NAMES)), (1 - confidence) / (len(NAMES) - 1))
    scores[np.arange(len(predicted)), predicted] = confidence
    return scores


class TestMetrics:
    def test_by_hand(self):
        # class a: 2 of 3 right, b: 1 of 1, c: 0 of 1 (taken for a); the others have no images
        metrics = classification_metrics(one_hot_like([0, 0, 1, 1, 0]), [0, 0, 0, 1, 2], NAMES)
        assert metrics["accuracy"] == pytest.approx(3 / 5)
        assert metrics["per_class_accuracy"] == {"a": pytest.approx(2 / 3), "b": 1.0, "c": 0.0}
        assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
        assert metrics["ece"] == pytest.approx(0.7 - 0.6)
        assert metrics["num_samples"] == 5

    def test_equal_names_each_have_their_accuracy(self):
        metrics = classification_metrics(one_hot_like([0, 1, 0])[:, :3], [0, 1, 1], ["missile", "missile", "cat"])
        assert metrics["per_class_accuracy"] == {"missile (label 0)": 1.0, "missile (label 1)": 0.5}

    def test_lines_to_read(self):
        score = {"accuracy": 0.5, "num_samples": 4}
        folds = {"accuracy": 0.75, "std": 0.25, "folds": [0.5, 1.0]}
        assert accuracies_told({"training": {}, "zero_shot": score, "cross_validation": folds}).splitlines() == [
            "zero-shot accuracy: 50.00% of 4 test images",
            "cross-validated accuracy: 75.00% ± 25.00% over 2 folds of the training images",
        ]
        assert "nothing was measured: give --test_dir, --test_size" in accuracies_told({"training": score})

    def test_top5(self):
        scores = np.array([[0.3, 0.25, 0.2, 0.1, 0.08, 0.05, 0.02]] * 3)
        assert classification_metrics(scores, [4, 5, 0], NAMES)["top5_accuracy"] == pytest.approx(2 / 3)
        assert classification_metrics(scores[:, :3], [2, 2, 1], NAMES[:3])["top5_accuracy"] == 1.0

    def test_calibration_by_hand(self):
        # two bins of 15: four samples at 0.95 with 2 right, two at 0.55 with 2 right
        scores = np.array([[0.95, 0.05]] * 4 + [[0.45, 0.55]] * 2)
        labels = np.array([0, 0, 1, 1, 1, 1])
        assert expected_calibration_error(scores, labels) == pytest.approx((4 * 0.45 + 2 * 0.45) / 6)

    def test_calibration_of_certainty(self):
        assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0
        assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([1])) == 1

    def test_no_samples(self):
        with pytest.raises(ValueError, match="no samples"):
            classification_metrics(np.zeros((0, 2)), [], NAMES[:2])


class TestBaselines:
    @pytest.fixture
    def model(self, clip) -> HFCoOp:
        return HFCoOp.from_clip(clip, CLASSNAMES, n_ctx=2)

    def test_zero_shot_is_clips_own(self, model, tokenizer, pixel_values):
        prompts = [f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES]
        with model.disable_adapter(), torch.no_grad():
            tokens = tokenizer(prompts, padding=True, return_tensors="pt")
            expected = model.clip(pixel_values=pixel_values, **tokens).logits_per_image
            embeds = model.clip.get_image_features(pixel_values=pixel_values).pooler_output
        torch.testing.assert_close(model.zero_shot_logits(embeds), expected, rtol=1e-5, atol=1e-5)

    def test_an_ensemble_averages_normalised_embeddings(self, model):
        templates = ["a photo of a {}.", "art of the {}.", "{}"]
        each = torch.stack([model.template_embeddings(template) for template in templates])
        expected = F.normalize(each.mean(0), dim=-1)
        torch.testing.assert_close(model.template_embeddings(templates), expected)

    @pytest.mark.parametrize("template", ["a photo of a {}.", "{} texture.", "{}", "{} or {} in a video game"])
    @pytest.mark.parametrize("names", [CLASSNAMES, ["one"], ["cat", "cat"], ["cat", "日本", "a 日 b"]])
    def test_a_template_is_as_the_tower_encodes_its_prompts(self, clip, tokenizer, template, names):
        """Also of characters that the vocabulary lacks: CLIP pools at the first end token."""
        tokens = tokenizer([template.replace("{}", name.replace("_", " ")) for name in names], padding=True)
        with torch.no_grad():
            embeds = clip.get_text_features(**tokens.convert_to_tensors("pt")).pooler_output
        found = template_embeddings(clip, tokenizer, names, template)
        torch.testing.assert_close(found, F.normalize(embeds, dim=-1), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("templates", "message"),
        [
            ("a photo.", r"'a photo\.' must have \{\}"),
            ([], "no template given"),
            (["{}.", "none"], "'none' must have"),
            ("a {name} {}", "no other braces"),
            ("a {0}", "must have"),
            (["{}", 3], "must be a string, got 3"),
            ("very " * 80 + "{}.", "hand-written prompt 'very very.* positions: shorten the template"),
        ],
    )
    def test_bad_templates(self, model, templates, message):
        with pytest.raises((TypeError, ValueError), match=message):
            model.template_embeddings(templates)
