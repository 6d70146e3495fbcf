"""Class prompts to class features, each shared prefix encoded once.

The published code runs K x 77 tokens through the text tower. The tower is causal and only EOS is read, so the
hidden states of a shared prefix are the same for every class and nothing after EOS matters: P + sum(tail lengths)
tokens give the same features to float rounding. The tokens form one sequence, so that every linear layer sees each
of them once; prefix and tails part only inside the attention function.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from .prompts import PromptLayout

SHARED_PREFIX_ATTENTION = "hf_coop_shared_prefix"


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
    if max_prompts_per_chunk is None or ctx.shape[0] * len(layout) <= max_prompts_per_chunk:
        return _encode_chunk(text_model, layout, ctx)

    trainable = [parameter for parameter in text_model.parameters() if parameter.requires_grad]

    def encode(part: PromptLayout, contexts: torch.Tensor) -> torch.Tensor:
        return _Recomputed.apply(partial(_encode_chunk, text_model, part), contexts, *trainable)

    groups = max(1, max_prompts_per_chunk // len(layout))
    parts = layout.split(max_prompts_per_chunk)
    rows = [torch.cat([encode(part, contexts) for part in parts], dim=1) for contexts in ctx.split(groups)]
    classes = [k for part in parts for k in sorted(part.order)]
    return torch.cat(rows)[:, torch.argsort(torch.tensor(classes, device=ctx.device))]


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
    hidden = _embed(text_model.embeddings, layout, ctx)  # (1, G * P + G * T, dim)
    encoder = _with_shared_prefix_attention(text_model.encoder)
    eos = encoder(inputs_embeds=hidden, attention_mask=None, prompt_layout=layout).last_hidden_state  # (1, G * K, dim)
    by_class = eos[0].unflatten(0, (ctx.shape[0], -1))[:, layout.tensors(eos.device)["class_order"]]
    return text_model.final_layer_norm(by_class)


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
    return torch.cat([prefixes.flatten(0, 1), tails.flatten(0, 1)])[None]


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
    """The tower's last layer where only EOS is read: every token gives key and value, the rest is for EOS alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, attention_mask: None, prompt_layout: PromptLayout) -> torch.Tensor:
        """`(1, G * P + G * T, dim)` to the states of EOS `(1, G * K, dim)`, tails in the layout's order."""
        layer, attention = self.layer, self.layer.self_attn
        groups = hidden.shape[1] // (prompt_layout.prefix_length + prompt_layout.n_tail_tokens)
        first = groups * prompt_layout.prefix_length
        tails = torch.arange(groups, device=hidden.device)[:, None] * prompt_layout.n_tail_tokens
        eos = (first + tails + prompt_layout.tensors(hidden.device)["eos"]).flatten()  # (G * K,)
        normed = layer.layer_norm1(hidden)
        projected = attention.q_proj(normed[:, eos]), attention.k_proj(normed), attention.v_proj(normed)
        query, key, value = (x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for x in projected)
        attended, _ = shared_prefix_attention(attention, query, key, value, None, attention.scale, prompt_layout)
        hidden = hidden[:, eos] + attention.out_proj(attended.flatten(2))
        return hidden + layer.mlp(layer.layer_norm2(hidden))


def shared_prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    prompt_layout: PromptLayout,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of G prefixes among themselves and of each class's tail to its group's prefix and itself.

    Plain matrix products: on CPU the backward pass of fused attention is several times slower on many tiny
    sequences. Tails of equal length are one batch, so nothing is padded or masked beyond causality.

    Args:
        key, value (`torch.Tensor` of shape `(1, heads, G * P + G * T, head_dim)`).
        query (`torch.Tensor`): of the same shape; or `(1, heads, G * K, head_dim)`, EOS alone.
        prompt_layout (`PromptLayout`): where the prefix ends and the tails begin.

    Returns:
        The attended values `(1, queries, heads, head_dim)`, and no weights.
    """
    P, T = prompt_layout.prefix_length, prompt_layout.n_tail_tokens
    groups = key.shape[2] // (P + T)
    eos_only = query.shape[2] < key.shape[2]

    def split(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        prefixes, tails = states[0].split([groups * P, groups * T], dim=1)
        return prefixes.unflatten(1, (groups, P)), tails.unflatten(1, (groups, T))  # (H, G, P | T, d)

    (k_prefix, k_tails), (v_prefix, v_tails) = split(key), split(value)
    out = []
    if eos_only:
        q_tails = (query * scaling)[0].unflatten(1, (groups, -1))  # (H, G, K, d)
    else:
        q_prefix, q_tails = split(query * scaling)
        out.append((_softmax(_causal(q_prefix @ k_prefix.mT)) @ v_prefix).flatten(1, 2))

    tails_out = []
    queries = q_tails.split([n if eos_only else n * length for _, n, length in prompt_layout.buckets], dim=2)
    for q, (start, count, length) in zip(queries, prompt_layout.buckets, strict=True):
        k_own, v_own = (
            x[:, :, start : start + count * length].unflatten(2, (count, length)) for x in (k_tails, v_tails)
        )
        to_prefix = (q @ k_prefix.mT).unflatten(2, (count, -1))  # (H, G, n, L | 1, P)
        to_own = _causal(q.unflatten(2, (count, -1)) @ k_own.mT)  # (H, G, n, L | 1, L)
        weights = _softmax(torch.cat([to_prefix, to_own], dim=-1))
        from_prefix, from_own = weights.split([P, length], dim=-1)
        tails_out.append(from_prefix.flatten(2, 3) @ v_prefix + (from_own @ v_own).flatten(2, 3))
    out.append(torch.cat(tails_out, dim=2).flatten(1, 2))
    return torch.cat(out, dim=1).transpose(0, 1)[None], None


def _causal(scores: torch.Tensor) -> torch.Tensor:
    """Hide each query's later keys in `scores` `(…, queries, keys)`, where the queries are the last of the keys."""
    queries, keys = scores.shape[-2:]
    later = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(1 + keys - queries)
    return scores.masked_fill(later, torch.finfo(scores.dtype).min)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the keys, in fp32 as transformers' eager attention does."""
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)


AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)
