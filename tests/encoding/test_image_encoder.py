"""Image features by frozen layers are what `CLIPModel.get_image_features` gives."""

from __future__ import annotations

import pytest
import torch
from conftest import PARITY, relative_error
from transformers import CLIPConfig, CLIPModel

from hf_coop.encoding.image_encoder import encode_pixels

TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture
def clip() -> CLIPModel:
    return CLIPModel.from_pretrained(PARITY).requires_grad_(False)


def pixels_for(clip: CLIPModel, count: int) -> torch.Tensor:
    size = clip.config.vision_config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_new"])
def test_equals_transformers(dtype, activation):
    config = CLIPConfig.from_pretrained(PARITY)
    config.vision_config.hidden_act = activation
    torch.manual_seed(0)
    clip = CLIPModel(config).eval()
    pixels = pixels_for(clip, 5)
    with torch.no_grad():
        expected = clip.get_image_features(pixel_values=pixels).pooler_output
    found = encode_pixels(clip.to(dtype), pixels.to(dtype))
    assert found.dtype == dtype
    assert not found.requires_grad
    assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_few_images_at_a_time(clip, monkeypatch, tokens):
    pixels = pixels_for(clip, 7)
    expected = clip.get_image_features(pixel_values=pixels).pooler_output
    monkeypatch.setattr("hf_coop.encoding.image_encoder.TOKENS_AT_A_TIME", tokens)
    assert relative_error(encode_pixels(clip, pixels), expected) < TOLERANCE[torch.float32]


def test_under_autocast(clip):
    pixels = pixels_for(clip, 3)
    expected = clip.get_image_features(pixel_values=pixels).pooler_output
    with torch.autocast("cpu", torch.bfloat16):
        found = encode_pixels(clip, pixels)
    assert 1e-4 < relative_error(found, expected) < TOLERANCE[torch.bfloat16]


def test_a_changed_module_counts(clip):
    """Whoever hooks into the tower, or changes what a part of it does, is obeyed."""
    pixels, calls = pixels_for(clip, 3), []
    before = encode_pixels(clip, pixels)
    hook = clip.vision_model.encoder.layers[1].mlp.fc1.register_forward_hook(lambda *args: calls.append(1))
    assert relative_error(encode_pixels(clip, pixels), before) < TOLERANCE[torch.float32]
    assert calls == [1]
    hook.remove()
    clip.vision_model.encoder.layers[0].mlp.fc2 = torch.nn.Sequential(clip.vision_model.encoder.layers[0].mlp.fc2)
    assert relative_error(encode_pixels(clip, pixels), before) < TOLERANCE[torch.float32]
    clip.vision_model.encoder.layers[0].mlp.fc2[0].bias[0] += 5
    assert relative_error(encode_pixels(clip, pixels), before) > 1e-3
