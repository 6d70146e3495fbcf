"""Attention over a shared prefix equals each prompt's own causal attention, forward and backward."""

from __future__ import annotations

import pytest
import torch

from hf_coop.encoding.attention import attend, attend_backward, attention_plan, shared_prefix_attention
from hf_coop.encoding.prompts import PromptLayout

HEADS, HEAD_DIM, SCALING = 3, 5, 0.7
LENGTHS = {
    "one class": [4],
    "one block": [3, 4, 5, 4],
    "EOS alone": [1, 1],
    "a block for each": [9, 9, 9],
    "several blocks": [1] * 6 + [4, 4, 9, 9, 30],
}


def make_layout(tail_lengths: list[int], prefix_length: int = 4) -> PromptLayout:
    tails = [[1] * length for length in tail_lengths]
    return PromptLayout([0] * prefix_length, tails, list(range(len(tails))))


def attend_alone(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PromptLayout, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each prompt on its own, by the definition: all tokens, and EOS alone, `(tokens, heads, head_dim)`."""
    P, T = layout.prefix_length, layout.n_tail_tokens
    out, eos = torch.zeros(query.shape[2], HEADS, HEAD_DIM, dtype=query.dtype), []
    for group in range(groups):
        start = groups * P + group * T
        for tail in layout.tails:
            tokens = [*range(group * P, (group + 1) * P), *range(start, start + len(tail))]
            q, k, v = (states[0][:, tokens] for states in (query, key, value))
            later = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
            weights = (SCALING * q @ k.mT).masked_fill(later, -torch.inf).softmax(-1)
            attended = (weights @ v).transpose(0, 1)
            eos.append(attended[-1])
            out = out.index_put((torch.tensor(tokens),), attended)
            start += len(tail)
    return out, torch.stack(eos)


@pytest.mark.parametrize("prefix_length", [1, 4, 40])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_equals_each_prompt_alone(lengths, groups, prefix_length):
    layout = make_layout(lengths, prefix_length)
    n_tokens = groups * (prefix_length + layout.n_tail_tokens)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 1, n_tokens, HEADS, HEAD_DIM, dtype=torch.float64, generator=generator)
    inputs = [x.transpose(1, 2).requires_grad_() for x in states]
    expected, expected_eos = attend_alone(*inputs, layout, groups)
    out, weights = shared_prefix_attention(None, *inputs, None, SCALING, layout)
    assert weights is None
    torch.testing.assert_close(out[0], expected)
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=generator)
    found = torch.autograd.grad((out * upstream).sum(), inputs)
    gradients = torch.autograd.grad((expected * upstream[0]).sum(), inputs, retain_graph=True)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other)

    plan = attention_plan(layout, HEADS, n_tokens, True, states.dtype, states.device)
    out, kept = attend(states[:, 0].transpose(0, 1), SCALING, plan)
    torch.testing.assert_close(out, expected_eos)
    found = attend_backward(upstream[0, : len(out)], *kept, SCALING, plan).permute(1, 2, 0, 3)
    gradients = torch.autograd.grad((expected_eos * upstream[0, : len(out)]).sum(), inputs)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other[0])
