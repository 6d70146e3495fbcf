"""Attention of class prompts that share a prefix, each token's queries, keys and values computed once.

Prefix tokens attend among themselves, a tail to its prefix and to itself. The tails are packed into blocks of equal
size, which see the prefix and, through a mask, each token its own tail. So one batch of products serves all classes,
whatever their number and lengths, forward and backward: on small towers it is the number of operations that costs,
and fused attention is slow on many tiny sequences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from .prompts import PromptLayout

SHARED_PREFIX_ATTENTION = "hf_coop_shared_prefix"


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
    """Softmax attention of G prefixes among themselves and of each class's tail to its group's prefix and itself.

    Args:
        query, key, value (`torch.Tensor` of shape `(1, heads, G * P + G * T, head_dim)`).
        prompt_layout (`PromptLayout`): where the prefix ends and the tails begin.

    Returns:
        The attended values `(1, G * P + G * T, heads, head_dim)`, and no weights.
    """
    qkv = torch.stack([query[0], key[0], value[0]]).permute(2, 0, 1, 3)  # (tokens, 3, heads, head_dim)
    plan = attention_plan(prompt_layout, query.shape[1], query.shape[2], False, query.dtype, query.device)
    return _SharedPrefixAttention.apply(qkv, scaling, plan)[None], None


AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)


class AttentionPlan(NamedTuple):
    """Where the rows `head_dim` of queries, keys and values go, so that attention is one batch of products.

    Batch entries are groups x blocks x heads. Each has B queries and P + B keys: the group's prefix, then the block.
    """

    heads: int
    groups: int
    prefix_length: int
    mask: torch.Tensor  # (batch, B, P + B), 0 or -inf, added to the scores
    take: torch.Tensor  # the row of `(tokens, 3, heads)` at each place of all queries, keys and values
    put: torch.Tensor  # the place of each row of the result `(queries, heads)`
    take_gradient: torch.Tensor  # the row of `(queries, heads)` at each place of queries
    no_gradient: torch.Tensor  # the places of queries that are padding, or that are not asked for
    put_gradient: torch.Tensor  # the place in the gradients of each row of `(tokens, 3, heads)`

    def split(self, places: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries `(batch, B, head_dim)`, keys and values `(batch, P + B, head_dim)` among all places, as views."""
        batch, n_queries, n_keys = self.mask.shape
        parts = places.split_with_sizes([batch * n_queries, batch * n_keys, batch * n_keys])
        return tuple(part.view(batch, -1, places.shape[-1]) for part in parts)


def attend(qkv: torch.Tensor, scaling: float, plan: AttentionPlan) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Attended values, and what `attend_backward` needs.

    Args:
        qkv (`torch.Tensor` of shape `(tokens, 3, heads, head_dim)`): queries, keys and values.

    Returns:
        `(queries, heads, head_dim)`; the states and attention weights of the batch.
    """
    states = qkv.reshape(-1, qkv.shape[-1]).index_select(0, plan.take)
    query, key, value = plan.split(states)
    weights = _softmax(torch.baddbmm(plan.mask, query, key.mT, alpha=scaling))
    attended = (weights @ value).view(-1, qkv.shape[-1])
    return attended.index_select(0, plan.put).view(-1, *qkv.shape[2:]), (states, weights)


def attend_backward(
    gradient: torch.Tensor, states: torch.Tensor, weights: torch.Tensor, scaling: float, plan: AttentionPlan
) -> torch.Tensor:
    """The gradient `(tokens, 3, heads, head_dim)` of `qkv`, given that of `attend`'s result."""
    head_dim, n_states = states.shape[-1], len(states)
    query, key, value = plan.split(states)
    d_attended = gradient.reshape(-1, head_dim).index_select(0, plan.take_gradient)
    d_attended = d_attended.index_fill_(0, plan.no_gradient, 0).view_as(query)
    d_scores = _softmax_backward(d_attended @ value.mT, weights).mul_(scaling)

    # Behind the gradients at their places come those of the prefix, summed over blocks, and a row of zeros.
    n_prefix = 2 * plan.groups * plan.heads * plan.prefix_length
    places = states.new_empty(n_states + n_prefix + 1, head_dim)
    at_places, of_prefix, zero = places.split_with_sizes([n_states, n_prefix, 1])
    d_query, d_key, d_value = plan.split(at_places)
    torch.bmm(d_scores, key, out=d_query)
    torch.bmm(d_scores.mT, query, out=d_key)
    torch.bmm(weights.mT, d_attended, out=d_value)
    by_block = at_places[d_query.numel() // head_dim :].view(2, plan.groups, -1, plan.heads, key.shape[1], head_dim)
    prefix = by_block[..., : plan.prefix_length, :]
    torch.sum(prefix, dim=2, out=of_prefix.view(2, plan.groups, plan.heads, plan.prefix_length, head_dim))
    zero.zero_()
    return places.index_select(0, plan.put_gradient).view(-1, 3, plan.heads, head_dim)


class _SharedPrefixAttention(torch.autograd.Function):
    """`attend`, differentiable."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, scaling: float, plan: AttentionPlan) -> torch.Tensor:
        attended, kept = attend(qkv, scaling, plan)
        ctx.scaling, ctx.plan = scaling, plan
        ctx.save_for_backward(*kept)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        states, weights = ctx.saved_tensors
        return attend_backward(gradient, states, weights, ctx.scaling, ctx.plan), None, None


def attention_plan(
    layout: PromptLayout, heads: int, n_tokens: int, eos_only: bool, dtype: torch.dtype, device: torch.device
) -> AttentionPlan:
    """The plan for all groups in `n_tokens`, made once for a layout."""
    groups = n_tokens // (layout.prefix_length + layout.n_tail_tokens)
    return layout.once(_make_plan, heads, groups, eos_only, dtype, device)


def _make_plan(
    layout: PromptLayout, heads: int, groups: int, eos_only: bool, dtype: torch.dtype, device: torch.device
) -> AttentionPlan:
    P, T = layout.prefix_length, layout.n_tail_tokens
    slots, mask = _blocks(layout)
    n_tokens, batch = groups * (P + T), (groups, len(slots), heads)
    n_queries = slots.shape[1]

    # Numbers of tokens, and of rows of `(tokens, heads)`; all prefixes come before all tails.
    prefixes, tails = torch.arange(n_tokens).tensor_split([groups * P])
    tokens = torch.cat([prefixes.view(groups, P), tails.view(groups, T)], dim=1)[:, slots.clamp(min=0)]
    in_slots = tokens[:, :, None].expand(*batch, n_queries)
    keys = torch.cat([prefixes.view(groups, 1, 1, P).expand(*batch, P), in_slots], dim=-1)
    head = torch.arange(heads)[:, None]
    take = [(rows * 3 + part) * heads + head for part, rows in enumerate((in_slots, keys, keys))]

    query_places = torch.arange(in_slots.numel()).view_as(in_slots)
    key_places = torch.arange(keys.numel()).view_as(keys)[..., P:]
    prefix_places = torch.arange(prefixes.numel() * heads).view(groups, heads, P).transpose(1, 2)
    real = (slots >= 0)[:, None].expand_as(in_slots)
    rows = (in_slots * heads + head)[real]
    of_query, of_key = (torch.empty(n_tokens * heads, dtype=torch.long) for _ in range(2))
    of_query[rows], of_key[rows] = query_places[real], key_places[real]

    put, put_gradient_of_query = of_query, of_query
    zero_row = in_slots.numel() + 2 * keys.numel() + 2 * prefix_places.numel()
    if eos_only:
        ends = groups * P + torch.arange(groups)[:, None] * T + layout.tensors(torch.device("cpu"))["eos"]
        put = of_query.view(-1, heads)[ends.flatten()].flatten()
        put_gradient_of_query = torch.full_like(of_query, zero_row)
        put_gradient_of_query[(ends.flatten()[:, None] * heads + head.T).flatten()] = put
    asked = torch.full((in_slots.numel(),), -1)
    asked[put] = torch.arange(len(put))

    of_key += in_slots.numel()
    of_key[: prefix_places.numel()] = in_slots.numel() + 2 * keys.numel() + prefix_places.flatten()
    of_value = of_key + keys.numel()
    of_value[: prefix_places.numel()] += prefix_places.numel() - keys.numel()
    put_gradient = torch.stack([x.view(-1, heads) for x in (put_gradient_of_query, of_key, of_value)], dim=1)
    return AttentionPlan(
        heads,
        groups,
        P,
        mask.to(device, dtype)[None, :, None].expand(groups, -1, heads, -1, -1).flatten(0, 2),
        torch.cat([x.flatten() for x in take]).to(device),
        put.to(device),
        asked.clamp(min=0).to(device),
        (asked < 0).nonzero()[:, 0].to(device),
        put_gradient.flatten().to(device),
    )


def _blocks(layout: PromptLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Which token each slot holds `(blocks, B)`, -1 for padding; and what it may not attend to `(blocks, B, P + B)`.

    The prefix comes first, cut into blocks too: of B queries each, all of whose keys are the prefix's.
    """
    P, size = layout.prefix_length, layout.block_size
    n_prefix_blocks = -(-P // size)
    n_blocks = n_prefix_blocks + len(layout.blocks)
    slots = torch.full((n_blocks, size), -1)
    tail = torch.full((n_blocks, size), -1)
    prefix = torch.arange(n_prefix_blocks * size).view(-1, size)
    slots[:n_prefix_blocks] = torch.where(prefix < P, prefix, -1)
    start = P
    for block, (first, stop) in enumerate(layout.blocks, start=n_prefix_blocks):
        lengths = torch.tensor([len(tail) for tail in layout.tails[first:stop]])
        n_tokens = int(lengths.sum())
        slots[block, :n_tokens] = torch.arange(start, start + n_tokens)
        tail[block, :n_tokens] = torch.arange(first, stop).repeat_interleave(lengths)
        start += n_tokens
    own = (tail[:, :, None] == tail[:, None]).tril()
    own[:n_prefix_blocks] = False
    to_prefix = torch.ones(n_blocks, size, P, dtype=torch.bool)
    to_prefix[:n_prefix_blocks] = torch.arange(P) <= prefix[:, :, None]
    visible = torch.cat([to_prefix, own], dim=-1)
    return slots, torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the keys, in at least fp32 as transformers' eager attention does."""
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def _softmax_backward(gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    exact = torch.promote_types(weights.dtype, torch.float32)
    scores = torch.ops.aten._softmax_backward_data(gradient.to(exact), weights.to(exact), -1, exact)
    return scores.to(weights.dtype)
