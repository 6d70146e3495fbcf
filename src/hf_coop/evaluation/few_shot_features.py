"""The image and text features that a baseline is fitted to, and the head that comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

IMAGES_AT_A_TIME = 1024


@dataclass(frozen=True)
class Head:
    """A fitted baseline: `head(image_embeds)` gives logits.

    Attributes:
        logits: of some projected image features `(B, D)`, not normalised, to `(B, K)`.
        settings (`dict[str, float]`): the hyper-parameters that were fixed or found on validation images.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    settings: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Logits `(N, K)` in fp32 of image features `(N, D)`, so many at a time that memory stays bounded."""
        return torch.cat([self.logits(part) for part in image_embeds.float().split(IMAGES_AT_A_TIME)])


class FewShotFeatures:
    """What a baseline may look at: the shots, the class names' text features, and a few validation images.

    Test images have no place here, so no hyper-parameter comes from them: where the validation images are the test
    images, as published for ImageNet, leave them out.

    Args:
        train_embeds (`torch.Tensor` of shape `(N, D)`): projected image features, not normalised, one view an image.
        train_labels (`Sequence[int]`): the N classes, from 0 to K - 1. A class may have no images.
        text_embeds (`torch.Tensor` of shape `(K, D)`): class embeddings of hand-written prompts.
        logit_scale (`float` or `torch.Tensor`): log of the inverse softmax temperature, `CLIPModel.logit_scale`.
        val_embeds (`torch.Tensor` of shape `(M, D)`), val_labels (`Sequence[int]`, *optional*): the few validation
            images that hyper-parameters are chosen on.

    Raises:
        ValueError: no training images, shapes or numbers that do not fit each other, a label that is no class, or
            features that are not finite.
    """

    def __init__(
        self,
        train_embeds: torch.Tensor,
        train_labels: torch.Tensor | Sequence[int],
        text_embeds: torch.Tensor,
        logit_scale: torch.Tensor | float,
        val_embeds: torch.Tensor | None = None,
        val_labels: torch.Tensor | Sequence[int] | None = None,
    ) -> None:
        if text_embeds.ndim != 2 or not text_embeds.numel():
            raise ValueError(f"text_embeds must have shape (K, D), got {tuple(text_embeds.shape)}")
        if (val_embeds is None) != (val_labels is None):
            raise ValueError("val_embeds and val_labels go together: give both or neither")
        self.text_embeds = text_embeds.detach().float()
        _check_finite("text", self.text_embeds)
        self.train_embeds, self.train_labels = self._check_images("train", train_embeds, train_labels)
        if not len(self.train_labels):
            raise ValueError("train_embeds has no images")
        self.val_embeds, self.val_labels = None, None
        if val_embeds is not None and val_labels is not None and len(val_labels):
            self.val_embeds, self.val_labels = self._check_images("val", val_embeds, val_labels)
        self.logit_scale = math.exp(float(logit_scale))

    def _check_images(
        self, name: str, embeds: torch.Tensor, labels: torch.Tensor | Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        classes, width = self.text_embeds.shape
        if embeds.ndim != 2 or embeds.shape[1] != width:
            raise ValueError(
                f"{name}_embeds must have shape (N, {width}), as wide as text_embeds, got {tuple(embeds.shape)}"
            )
        labels = torch.as_tensor(labels, dtype=torch.long, device=self.text_embeds.device)
        if labels.shape != embeds.shape[:1]:
            raise ValueError(f"{name}_labels must be {len(embeds)} labels, one an image, got {tuple(labels.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            wrong = next(label for label in labels.tolist() if not 0 <= label < classes)
            raise ValueError(f"{name}_labels holds {wrong}, but labels go from 0 to {classes - 1}")
        embeds = embeds.detach().to(self.text_embeds)
        _check_finite(name, embeds)
        return embeds, labels

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.text_embeds)

    @property
    def images(self) -> torch.Tensor:
        """The shots' features, normalised, `(N, D)`."""
        return F.normalize(self.train_embeds, dim=-1)

    @property
    def zero_shot_weight(self) -> torch.Tensor:
        """`exp(logit_scale) * text_k / |text_k|`, `(K, D)`: CLIP's own classifier of normalised image features."""
        return self.logit_scale * F.normalize(self.text_embeds, dim=-1)

    def validation_accuracy(self, logits: torch.Tensor) -> float:
        """The share of the validation images that their logits `(M, K)` put right."""
        return float((logits.argmax(-1) == self.val_labels).float().mean())


def _check_finite(name: str, embeds: torch.Tensor) -> None:
    if not embeds.isfinite().all():
        raise ValueError(f"{name}_embeds holds numbers that are not finite")
