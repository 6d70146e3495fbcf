"""`KgCoOpPromptLearner`: CoOp's context with knowledge of the hand-written prompt in its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from ..layer import PromptLearner


class KgCoOpPromptLearner(PromptLearner):
    """The learned context of one KgCoOp adapter (KgCoOp, arXiv 2303.13283, section 3.2).

    Takes the arguments of [`PromptLearner`], with a [`KgCoOpConfig`].
    """

    def losses(
        self,
        model: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        image_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Cross-entropy + λ · (1 − mean over classes k of cos(w_k, t_k)).

        w_k is the feature of class k with the learned prompt, t_k with the hand-written one, both of length 1. So
        1 − cos(w_k, t_k) is half of the paper's ‖w_k − t_k‖², which is exact also where the two are near.

        Args:
            model, logits, labels, image_embeds, class_embeds: as in [`PromptLearner.losses`].

        Raises:
            ValueError: no tokenizer is found to encode the template with.
        """
        templates = model.template_embeddings(self.config.template)  # (K, D)
        distance = (class_embeds - templates).square().sum(-1).mean() / 2
        return (F.cross_entropy(logits, labels) + self.config.kgcoop_weight * distance,)
