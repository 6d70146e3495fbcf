"""Pixels to image features, for towers that are not trained."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F
from transformers import CLIPModel

from .frozen_layers import can_run_frozen, make_frozen_layer

TOKENS_AT_A_TIME = 1024


@torch.no_grad()
def encode_pixels(clip: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """What `clip.get_image_features(pixel_values=pixels)` gives in evaluation mode, without gradients, sooner.

    On a CPU a few images at a time go through a layer, so that they stay in its cache. The last layer gives CLS alone,
    all that is read.

    Args:
        clip (`CLIPModel`).
        pixels (`torch.Tensor` of shape `(B, 3, H, W)`).

    Returns:
        `torch.Tensor` of shape `(B, D)`, not normalised.
    """
    tower = clip.vision_model
    if not can_run_frozen(tower, clip.visual_projection):
        return clip.get_image_features(pixel_values=pixels).pooler_output
    n_tokens = tower.embeddings.num_positions
    size = max(1, TOKENS_AT_A_TIME // n_tokens) if pixels.device.type == "cpu" else len(pixels)
    parts = [tower.pre_layrnorm(tower.embeddings(part)).flatten(0, 1) for part in pixels.split(size)]
    attend = partial(_attend, n_tokens=n_tokens, n_queries=n_tokens)
    *modules, last = tower.encoder.layers
    for module in modules:
        layer = make_frozen_layer(module)  # one at a time, since its joined weights take memory
        parts = [layer.forward(hidden, attend)[0] for hidden in parts]
    layer, attend = make_frozen_layer(last), partial(_attend, n_tokens=n_tokens, n_queries=1)
    firsts = [torch.arange(0, len(hidden), n_tokens, device=hidden.device) for hidden in parts]
    parts = [layer.forward(hidden, attend, first)[0] for hidden, first in zip(parts, firsts, strict=True)]
    return torch.cat([clip.visual_projection(tower.post_layernorm(cls)) for cls in parts])


def _attend(qkv: torch.Tensor, scaling: float, n_tokens: int, n_queries: int) -> tuple[torch.Tensor, tuple[()]]:
    query, key, value = qkv.unflatten(0, (-1, n_tokens)).permute(2, 0, 3, 1, 4)  # (B, heads, tokens, …)
    attended = _attention(query[:, :, :n_queries], key, value, scaling)
    return attended.transpose(1, 2).flatten(0, 1), ()


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, scale=scaling)
    # On CPUs the fused kernel takes twice as long in lower precision as plain products.
    weights = torch.softmax((query * scaling) @ key.mT, dim=-1, dtype=torch.float32).to(value.dtype)
    return weights @ value
