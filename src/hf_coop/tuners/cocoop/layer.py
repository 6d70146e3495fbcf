"""`CoCoOpPromptLearner`: a context that depends on the image."""

from __future__ import annotations

import torch
from torch import nn

from ...encoding import encode_prompts
from ..layer import PromptLearner
from .config import CoCoOpConfig


class MetaNet(nn.Module):
    """From an image embedding to the bias of its context: Linear(D, D // 16) - ReLU - Linear(D // 16, dim).

    Args:
        embed_dim (`int`): D, the width of CLIP's projection.
        ctx_dim (`int`): dim, the width of the text tower.
    """

    def __init__(self, embed_dim: int, ctx_dim: int) -> None:
        super().__init__()
        hidden = max(1, embed_dim // 16)
        self.linear1 = nn.Linear(embed_dim, hidden)
        self.linear2 = nn.Linear(hidden, ctx_dim)

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """`(B, D)` normalised image embeddings to `(B, dim)` biases."""
        return self.linear2(self.linear1(image_embeds.to(self.linear1.weight.dtype)).relu())


class CoCoOpPromptLearner(PromptLearner):
    """The learned context of one CoCoOp adapter (CoCoOp, section 3.2): `ctx_m(x) = ctx_m + meta_net(x)` for image x.

    Args:
        config ([`CoCoOpConfig`]): tokenised.
        clip (`CLIPModel`): the model it is for.

    Attributes:
        ctx (`nn.Parameter`): `(M, dim)`.
        meta_net ([`MetaNet`]): one bias an image, added to all M vectors.
        logit_scale, layout: as in [`PromptLearner`].
    """

    def __init__(self, config: CoCoOpConfig, clip: nn.Module) -> None:
        super().__init__(config, clip)
        self.meta_net = MetaNet(clip.config.projection_dim, self.ctx.shape[-1]).to(self.ctx)

    def forward(self, text_model: nn.Module, image_embeds: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled features `(B, K, dim)` of the class prompts of each of B images.

        Args:
            text_model (`CLIPTextModel`): the tower.
            image_embeds (`torch.Tensor` of shape `(B, D)`): normalised image embeddings.

        Raises:
            ValueError: no image embeddings, none in the batch, or of another width; or `torch.export` is to leave the
                batch size open.
        """
        if image_embeds is None:
            raise ValueError(
                "CoCoOp's class prompts depend on the image, which CLIPModel.forward cannot pass on: use "
                "hf_coop.HFCoOp, whose model(pixel_values=…) and model.class_embeddings(image_embeds) can"
            )
        width = self.meta_net.linear1.in_features
        if image_embeds.ndim != 2 or 0 in image_embeds.shape or image_embeds.shape[1] != width:
            raise ValueError(
                f"CoCoOp needs the embeddings of at least one image, of shape (batch, {width}), "
                f"got shape {tuple(image_embeds.shape)}"
            )
        if not isinstance(image_embeds.shape[0], int):
            raise ValueError(
                "CoCoOp makes class prompts for each image, so that it can be exported for one batch size only: leave "
                "the batch out of dynamic_shapes"
            )
        ctx = self.ctx + self.meta_net(image_embeds)[:, None]  # (B, M, dim)
        return encode_prompts(text_model, self.layout, ctx, self.config.max_prompts_per_chunk)
