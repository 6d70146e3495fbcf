"""Attention of class prompts that share a prefix, each token's queries, keys and values computed once.

Prefix tokens attend among themselves, a tail to its prefix and to itself. Tails of similar length form one padded
batch, and the backward pass is written out, so that the number of operations does not grow with the number of classes
and of lengths: on small towers it is their number that costs, and fused attention is slow on many tiny sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        key, value (`torch.Tensor` of shape `(1, heads, G * P + G * T, head_dim)`).
        query (`torch.Tensor`): of the same shape; or `(1, heads, G * K, head_dim)`, EOS alone.
        prompt_layout (`PromptLayout`): where the prefix ends and the tails begin.

    Returns:
        The attended values `(1, queries, heads, head_dim)`, and no weights.
    """
    heads, n_tokens = key.shape[1:3]
    groups = n_tokens // (prompt_layout.prefix_length + prompt_layout.n_tail_tokens)
    eos_only = query.shape[2] < n_tokens
    plan = prompt_layout.once(_make_plan, heads, groups, eos_only, key.device)
    return _SharedPrefixAttention.apply(query, key, value, scaling, plan), None


AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)


class _Blocks(NamedTuple):
    """How rows `(tokens * heads, head_dim)` regroup into blocks: the prefixes, then the tails of each bucket.

    A block is `(heads * G, tails, length, head_dim)`; the prefixes are one "tail" a group.
    """

    heads: int
    shapes: list[tuple[int, int, int]]
    rows: torch.Tensor  # which row each place takes; the padding of a tail repeats its last token
    places: torch.Tensor  # in which place each row is
    padding: torch.Tensor  # the places that are padding

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """`(1, heads, tokens, head_dim)` to all blocks behind each other, `(places, head_dim)`."""
        return states[0].transpose(0, 1).reshape(-1, states.shape[-1]).index_select(0, self.rows)

    def put_back(self, places: torch.Tensor) -> torch.Tensor:
        """`(places, head_dim)` to `(1, tokens, heads, head_dim)`."""
        return places.index_select(0, self.places).view(1, -1, self.heads, places.shape[-1])

    def views(self, places: torch.Tensor) -> list[torch.Tensor]:
        """The blocks in `(places, head_dim)`."""
        parts = places.split([batch * tails * length for batch, tails, length in self.shapes])
        return [part.view(*shape, places.shape[-1]) for part, shape in zip(parts, self.shapes, strict=True)]


class _Plan(NamedTuple):
    """The blocks of queries and of keys, and per block what to hide: `(tails | 1, queries, keys)`."""

    queries: _Blocks
    keys: _Blocks
    hidden: list[torch.Tensor]


def _make_plan(layout: PromptLayout, heads: int, groups: int, eos_only: bool, device: torch.device) -> _Plan:
    P, T, K = layout.prefix_length, layout.n_tail_tokens, len(layout)
    group = torch.arange(groups)[:, None, None]
    prefix = torch.arange(P)
    keys = [(group * P + prefix, prefix[None] >= 0)]  # tokens (G, tails, length), and which of them are real
    queries = [(group[..., :0], prefix[None, :0] >= 0)] if eos_only else [*keys]
    hidden = [prefix > prefix[: 0 if eos_only else P, None]]
    ends = torch.tensor([len(tail) for tail in layout.tails]).cumsum(0)
    for first, stop, length in layout.buckets:
        lengths = torch.tensor([[len(tail)] for tail in layout.tails[first:stop]])
        place = torch.arange(length)
        tokens = ends[first:stop, None] - lengths + place.minimum(lengths - 1)
        keys.append((groups * P + group * T + tokens, place < lengths))
        if eos_only:
            queries.append((group * K + torch.arange(first, stop)[:, None], lengths > 0))
        else:
            queries.append(keys[-1])
        hidden.append(place > (lengths[:, None] - 1 if eos_only else place[:, None]))
    return _Plan(_blocks(queries, heads, device), _blocks(keys, heads, device), [mask.to(device) for mask in hidden])


def _blocks(blocks: Sequence[tuple[torch.Tensor, torch.Tensor]], heads: int, device: torch.device) -> _Blocks:
    head = torch.arange(heads)[:, None, None, None]
    rows = torch.cat([(tokens * heads + head).flatten() for tokens, _ in blocks])
    real = torch.cat([real.expand(heads, *tokens.shape).flatten() for tokens, real in blocks])
    places = torch.empty_like(rows[real])
    places[rows[real]] = real.nonzero()[:, 0]
    shapes = [(heads * len(tokens), *tokens.shape[1:]) for tokens, _ in blocks]
    return _Blocks(heads, shapes, rows.to(device), places.to(device), (~real).nonzero()[:, 0].to(device))


class _SharedPrefixAttention(torch.autograd.Function):
    """Each block attends to the prefix (the prefixes themselves: to nothing there) and to itself, in one softmax."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, plan: _Plan
    ) -> torch.Tensor:
        query, key, value = plan.queries.take(query).mul_(scaling), plan.keys.take(key), plan.keys.take(value)
        out, weights = torch.empty_like(query), []
        k_blocks, v_blocks = plan.keys.views(key), plan.keys.views(value)
        blocks = zip(plan.queries.views(query), k_blocks, v_blocks, plan.queries.views(out), plan.hidden, strict=True)
        for number, (q, k, v, o, hidden) in enumerate(blocks):
            k_prefix, v_prefix = _prefix(k_blocks, number), _prefix(v_blocks, number)
            to_own = (q @ k.mT).masked_fill_(hidden, torch.finfo(q.dtype).min)
            to_prefix = (_rows(q) @ k_prefix.mT).view(*q.shape[:3], k_prefix.shape[1])
            weights.append(_softmax(torch.cat([to_prefix, to_own], dim=-1)))  # (heads * G, tails, queries, P + keys)
            w_prefix, w_own = weights[-1].tensor_split([to_prefix.shape[-1]], dim=-1)
            torch.bmm(_rows(w_prefix), v_prefix, out=_rows(o))
            _batch(o).baddbmm_(_batch(w_own), _batch(v))
        ctx.plan, ctx.scaling = plan, scaling
        ctx.save_for_backward(query, key, value, *weights)
        return plan.queries.put_back(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan: _Plan = ctx.plan
        query, key, value, *weights = ctx.saved_tensors
        d_out = plan.queries.take(gradient.transpose(1, 2)).index_fill_(0, plan.queries.padding, 0)
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        queries = zip(*map(plan.queries.views, (query, d_query, d_out)), strict=True)
        k_blocks, v_blocks, dk_blocks, dv_blocks = map(plan.keys.views, (key, value, d_key, d_value))
        keys = zip(k_blocks, v_blocks, dk_blocks, dv_blocks, strict=True)
        for number, ((q, dq, do), (k, v, dk, dv), w) in enumerate(zip(queries, keys, weights, strict=True)):
            k_prefix, v_prefix, dk_prefix, dv_prefix = (
                _prefix(blocks, number) for blocks in (k_blocks, v_blocks, dk_blocks, dv_blocks)
            )
            dw_prefix = (_rows(do) @ v_prefix.mT).view(*q.shape[:3], k_prefix.shape[1])
            d_scores = _softmax_backward(torch.cat([dw_prefix, do @ v.mT], dim=-1), w)
            (ds_prefix, ds_own), (w_prefix, w_own) = (
                x.tensor_split([dw_prefix.shape[-1]], dim=-1) for x in (d_scores, w)
            )
            torch.bmm(_rows(ds_prefix), k_prefix, out=_rows(dq))
            _batch(dq).baddbmm_(_batch(ds_own), _batch(k))
            torch.bmm(_batch(ds_own).mT, _batch(q), out=_batch(dk))
            torch.bmm(_batch(w_own).mT, _batch(do), out=_batch(dv))
            dk_prefix.baddbmm_(_rows(ds_prefix).mT, _rows(q))
            dv_prefix.baddbmm_(_rows(w_prefix).mT, _rows(do))
        inputs = (plan.queries, d_query.mul_(ctx.scaling)), (plan.keys, d_key), (plan.keys, d_value)
        return *(blocks.put_back(gradient).transpose(1, 2) for blocks, gradient in inputs), None, None


def _prefix(blocks: Sequence[torch.Tensor], number: int) -> torch.Tensor:
    """What block `number` sees of the prefixes, `(heads * G, P, head_dim)`: block 0, the prefixes, nothing."""
    return blocks[0][:, 0, : None if number else 0]


def _rows(block: torch.Tensor) -> torch.Tensor:
    """`(heads * G, tails * length, …)`, for products with the prefix."""
    return block.flatten(1, 2)


def _batch(block: torch.Tensor) -> torch.Tensor:
    """`(heads * G * tails, length, …)`, for products within each tail."""
    return block.flatten(0, 1)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the keys, in at least fp32 as transformers' eager attention does."""
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def _softmax_backward(gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    exact = torch.promote_types(weights.dtype, torch.float32)
    scores = torch.ops.aten._softmax_backward_data(gradient.to(exact), weights.to(exact), -1, exact)
    return scores.to(weights.dtype)
