"""`ProGradPromptLearner`: CoOp's context, whose gradient never goes against zero-shot CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from ..layer import PromptLearner


class ProGradPromptLearner(PromptLearner):
    """The learned context of one ProGrad adapter (ProGrad, arXiv 2205.14865, section 3.2).

    Takes the arguments of [`PromptLearner`], with a [`ProGradConfig`].
    """

    def losses(
        self,
        model: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        image_embeds: torch.Tensor,
        class_embeds: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Cross-entropy with the labels, and with the probabilities of zero-shot CLIP.

        The second, T² · mean over images of −Σ_k softmax(z / T)_k log_softmax(logits / T)_k with zero-shot logits z,
        has the gradient of the paper's Kullback-Leibler divergence, and differs from it by a constant.

        Args:
            model, logits, labels, image_embeds, class_embeds: as in [`PromptLearner.losses`].

        Raises:
            ValueError: no tokenizer is found to encode the template with.
        """
        temperature = self.config.prograd_temperature
        zero_shot = model.zero_shot_logits(image_embeds, self.config.template)  # (B, K)
        divergence = F.cross_entropy(logits / temperature, (zero_shot / temperature).softmax(-1))
        return F.cross_entropy(logits, labels), temperature**2 * divergence

    def merge_gradients(self, *gradients: torch.Tensor) -> torch.Tensor:
        """g − λ min(0, g · h) h for gradients g of the labels' loss and h, normalised, of zero-shot CLIP's.

        Where the two agree (g · h ≥ 0) that is g itself; else, with λ = 1, it is the part of g orthogonal to h. A zero
        h changes nothing.

        Args:
            gradients: of one parameter, from each of `losses`, over the whole batch.
        """
        labels, zero_shot = gradients
        direction = F.normalize(zero_shot.flatten(), dim=0).view_as(zero_shot)
        opposing = (labels * direction).sum().clamp(max=0)
        return labels - self.config.prograd_lambda * opposing * direction
