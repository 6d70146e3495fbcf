"""Class prompts to class features, each shared prefix encoded once.

The published code runs K x 77 tokens through the text tower. The tower is causal and only EOS is read, so the
hidden states of a shared prefix are the same for every class and nothing after EOS matters: P + sum(tail lengths)
tokens give the same features to float rounding. The tokens form one sequence, so that every linear layer sees each
of them once; prefix and tails part only inside the attention function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .attention import SHARED_PREFIX_ATTENTION, AttentionPlan, attention_plan
from .frozen_layers import FrozenLayer, frozen_layers, run_frozen_layers
from .prompts import PromptLayout

TOKENS_AT_A_TIME = 1024  # keeps the tensors of a layer in the processor's cache, and in memory that malloc reuses


def encode_prompts(
    text_model: nn.Module, layout: PromptLayout, ctx: torch.Tensor, max_prompts_per_chunk: int | None = None
) -> torch.Tensor:
    """Encode the prompts of `layout` with G contexts through CLIP's text tower, up to the pooled EOS state.

    Equal to running each prompt alone through `text_model` (embeddings, encoder, final layer norm, EOS pooling).
    With gradient checkpointing switched on in `text_model`, its layers recompute in the backward pass as usual.

    Args:
        text_model (`CLIPTextModel`): the frozen tower.
        layout (`PromptLayout`): K prompts.
        ctx (`torch.Tensor` of shape `(G, C, dim)`): G sets of the C context vectors that `layout` numbers.
        max_prompts_per_chunk (`int`, *optional*): of the G x K prompts, encode at most so many at a time, and, in
            training, each such chunk again in the backward pass. Default: all at once.

    Returns:
        `torch.Tensor` of shape `(G, K, dim)`: pooled features in label order, before the text projection.
    """
    if torch.compiler.is_compiling():  # `torch.export` sees through the attention's own backward pass, to none
        ctx = ctx.detach()
    encode = partial(_encode_within_cache, text_model)
    if max_prompts_per_chunk is None or ctx.shape[0] * len(layout) <= max_prompts_per_chunk:
        eos = encode(layout, ctx)
    else:
        trainable = [parameter for parameter in text_model.parameters() if parameter.requires_grad]

        def encode_and_forget(part: PromptLayout, contexts: torch.Tensor) -> torch.Tensor:
            return _Recomputed.apply(partial(encode, part), contexts, *trainable)

        eos = _in_parts(encode_and_forget, layout, ctx, max_prompts_per_chunk)
    return text_model.final_layer_norm(eos[:, layout.tensors(eos.device)["class_order"]])


def _in_parts(
    encode: Callable[[PromptLayout, torch.Tensor], torch.Tensor], layout: PromptLayout, ctx: torch.Tensor, size: int
) -> torch.Tensor:
    """`encode` of at most `size` prompts at a time; `(G, K, dim)`, tails in the layout's order."""
    parts, groups = layout.split(size), max(1, size // len(layout))
    return torch.cat([torch.cat([encode(part, some) for part in parts], dim=1) for some in ctx.split(groups)])


def _encode_within_cache(text_model: nn.Module, layout: PromptLayout, ctx: torch.Tensor) -> torch.Tensor:
    """All at once on an accelerator. On a CPU as many prompts at a time as have some `TOKENS_AT_A_TIME`."""
    if ctx.device.type != "cpu":
        return _encode_chunk(text_model, layout, ctx)
    tail_tokens = max(1, TOKENS_AT_A_TIME - layout.prefix_length)
    size = max(1, len(layout) * tail_tokens // layout.n_tail_tokens)
    return _in_parts(partial(_encode_chunk, text_model), layout, ctx, size)


class _Recomputed(torch.autograd.Function):
    """`encode(contexts)`, without a graph until the backward pass computes it again, one chunk after the other.

    `torch.utils.checkpoint` does not do: without reentry the small graph nodes that it leaves between the freed
    activations of every chunk fragment the heap, so that memory grows with their number (4 times at 8 chunks), and
    with reentry it refuses `torch.autograd.grad`.
    """

    @staticmethod
    def forward(ctx: Any, encode: Any, contexts: torch.Tensor, *trainable: torch.Tensor) -> torch.Tensor:
        device = contexts.device.type
        ctx.encode = encode
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.save_for_backward(contexts, *trainable)
        return encode(contexts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        contexts, *trainable = ctx.saved_tensors
        contexts = contexts.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            features = ctx.encode(contexts)
        inputs = [contexts, *trainable]
        return None, *torch.autograd.grad(features, inputs, gradient, allow_unused=True)


def _encode_chunk(text_model: nn.Module, layout: PromptLayout, ctx: torch.Tensor) -> torch.Tensor:
    hidden = _embed(text_model.embeddings, layout, ctx)  # (G * P + G * T, dim)
    encoder = text_model.encoder
    layers = frozen_layers(encoder)
    if layers is None:
        encoder = _with_shared_prefix_attention(encoder)
        eos = encoder(inputs_embeds=hidden[None], attention_mask=None, prompt_layout=layout).last_hidden_state[0]
    else:
        eos = _encode_frozen(layers, layout, hidden)
    return eos.unflatten(0, (ctx.shape[0], -1))


def _encode_frozen(layers: Sequence[FrozenLayer], layout: PromptLayout, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states `(G * P + G * T, dim)` to those of EOS `(G * K, dim)`, tails in the layout's order."""

    def plan(eos_only: bool) -> AttentionPlan:
        dtype, heads = layers[0].qkv.weight.dtype, layers[0].heads
        return attention_plan(layout, heads, len(hidden), eos_only, dtype, hidden.device)

    every_token, eos = (plan(False), None), (plan(True), eos_tokens(layout, hidden))
    return run_frozen_layers(layers, hidden, [every_token] * (len(layers) - 1) + [eos])


def eos_tokens(layout: PromptLayout, hidden: torch.Tensor) -> torch.Tensor:
    """Where EOS stands among the tokens `(G * P + G * T, dim)` of all groups, `(G * K,)`."""
    groups = len(hidden) // (layout.prefix_length + layout.n_tail_tokens)
    tails = torch.arange(groups, device=hidden.device)[:, None] * layout.n_tail_tokens
    return (groups * layout.prefix_length + tails + layout.tensors(hidden.device)["eos"]).flatten()


def _embed(embeddings: nn.Module, layout: PromptLayout, ctx: torch.Tensor) -> torch.Tensor:
    """Input embeddings: all prefixes, then all tails, context vectors in their places, positions added."""
    index = layout.tensors(ctx.device)
    words = embeddings.token_embedding(index["ids"])  # (P + T, dim)
    places = index["context_at"][:, None].expand(-1, words.shape[-1])
    vectors = ctx.to(words.dtype)[:, index["context"]]  # (G, C, dim)
    groups = ctx.shape[0]
    embeds = words.expand(groups, -1, -1).scatter(1, places.expand(groups, -1, -1), vectors)
    embeds = embeds + embeddings.position_embedding(index["positions"])
    prefixes, tails = embeds.tensor_split([layout.prefix_length], dim=1)
    return torch.cat([prefixes.flatten(0, 1), tails.flatten(0, 1)])


def _with_shared_prefix_attention(encoder: nn.Module) -> nn.Module:
    """A view of `encoder`: same weights and buffers, but attending by `shared_prefix_attention`, and ending at EOS.

    Only module objects are copied, not tensors, which costs microseconds. The original and its config stay
    untouched, so ordinary text encoding is what it was, in other threads and in a later backward pass too.
    """
    config = copy.copy(encoder.config)
    config._attn_implementation = SHARED_PREFIX_ATTENTION

    def view(module: nn.Module, **children: nn.Module) -> nn.Module:
        module = copy.copy(module)
        module._modules = {**module._modules, **children}
        return module

    def layer_view(layer: nn.Module) -> nn.Module:
        attention = copy.copy(layer.self_attn)
        attention.config = config
        return view(layer, self_attn=attention)

    *layers, last = map(layer_view, encoder.layers)
    return view(encoder, layers=nn.ModuleList([*layers, _LastLayer(last)]))


class _LastLayer(nn.Module):
    """The tower's last layer where only EOS is read: its MLP is for EOS alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, attention_mask: None, prompt_layout: PromptLayout) -> torch.Tensor:
        """`(1, G * P + G * T, dim)` to the states of EOS `(1, G * K, dim)`, tails in the layout's order."""
        layer = self.layer
        eos = eos_tokens(prompt_layout, hidden[0])
        attended, _ = layer.self_attn(layer.layer_norm1(hidden), prompt_layout=prompt_layout)
        hidden = hidden[:, eos] + attended[:, eos]
        return hidden + layer.mlp(layer.layer_norm2(hidden))
