"""Pixels to image features, for towers that are not trained."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

from .frozen_layers import FrozenLayer, can_run_frozen, make_frozen_layers

TOKENS_AT_A_TIME = 1024


@torch.no_grad()
def encode_pixels(clip: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """What `clip.get_image_features(pixel_values=pixels)` gives in evaluation mode, without gradients, sooner.

    On a CPU few images at a time, so that they stay in its cache. The last layer gives CLS alone, all that is read.

    Args:
        clip (`CLIPModel`).
        pixels (`torch.Tensor` of shape `(B, 3, H, W)`).

    Returns:
        `torch.Tensor` of shape `(B, D)`, not normalised.
    """
    tower = clip.vision_model
    if not can_run_frozen(tower, clip.visual_projection):
        return clip.get_image_features(pixel_values=pixels).pooler_output
    layers, n_tokens = make_frozen_layers(tower.encoder), tower.embeddings.num_positions
    size = max(1, TOKENS_AT_A_TIME // n_tokens) if pixels.device.type == "cpu" else len(pixels)
    return torch.cat([clip.visual_projection(_cls_states(tower, layers, part)) for part in pixels.split(size)])


def _cls_states(tower: nn.Module, layers: list[FrozenLayer], pixels: torch.Tensor) -> torch.Tensor:
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))  # (B, tokens, dim)
    n_images, n_tokens, _ = hidden.shape
    hidden = hidden.flatten(0, 1)

    def attend(qkv: torch.Tensor, scaling: float, n_queries: int = n_tokens) -> tuple[torch.Tensor, tuple[()]]:
        query, key, value = qkv.unflatten(0, (n_images, n_tokens)).permute(2, 0, 3, 1, 4)  # (B, heads, tokens, …)
        attended = _attention(query[:, :, :n_queries], key, value, scaling)
        return attended.transpose(1, 2).flatten(0, 1), ()

    *layers, last = layers
    for layer in layers:
        hidden, _ = layer.forward(hidden, attend)
    cls = torch.arange(0, len(hidden), n_tokens, device=hidden.device)
    hidden, _ = last.forward(hidden, partial(attend, n_queries=1), cls)
    return tower.post_layernorm(hidden)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, scale=scaling)
    # On CPUs the fused kernel takes twice as long in lower precision as plain products.
    weights = torch.softmax((query * scaling) @ key.mT, dim=-1, dtype=torch.float32).to(value.dtype)
    return weights @ value
