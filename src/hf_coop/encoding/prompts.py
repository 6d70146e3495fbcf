"""The token layout of K class prompts: what all classes share, each class's rest, where EOS sits.

A class prompt is `<context> <name>.` between the tokenizer's SOS and EOS (CoOp, arXiv 2109.01134, section 3.2).
Everything before the first token that differs between classes is the *prefix*, encoded once; what follows, up to
and including EOS, is the class's *tail*. Nothing comes after EOS: the tower is causal and only EOS is read.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise, takewhile
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ..escaping import one_line

SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no tokenizer takes
CLASS_TOKEN_POSITIONS = ("end", "middle", "front")
MAX_CLASSES = 100_000
MAX_NAMED_GROUPS = 10  # in a message
SMALLEST_BLOCK = 16  # products of fewer rows are no faster


def clean_classname(name: str) -> str:
    """The words of a class name as they stand in the prompt: underscores become spaces, white space is single."""
    return " ".join(name.replace("_", " ").split())


def check_classnames(classnames: Any) -> list[str]:
    """Return `classnames` as a list, or raise.

    Args:
        classnames (`Sequence[str]`): one name a class, in label order.

    Raises:
        TypeError: not a sequence of strings.
        ValueError: no names, too many of them, or a blank name.
    """
    if isinstance(classnames, (str, bytes)) or not isinstance(classnames, Iterable):
        raise TypeError(f"classnames must be a list of strings, one a class, got {classnames!r:.80}")
    names = list(classnames)
    if not names:
        raise ValueError("classnames is empty: give at least one class name")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{len(names)} class names given, at most {MAX_CLASSES} are supported")
    for label, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"class name {label} is {name!r:.80} of type {type(name).__name__}: names must be strings")
        if SURROGATE.search(name):
            raise ValueError(f"class name {label} is {name!r:.80}: it has half a character (a lone surrogate)")
        if not one_line(clean_classname(name)):
            raise ValueError(f"class name {label} is blank ({name!r:.80}): every class needs a name")
    return names


def distinct_classnames(classnames: Sequence[str]) -> list[str]:
    """The class names as keys or captions: equal ones are told apart by their labels, "missile (label 657)"."""
    count = Counter(classnames)
    labelled = [f"{name} (label {label})" for label, name in enumerate(classnames)]
    keys = [name if count[name] == 1 else long for name, long in zip(classnames, labelled, strict=True)]
    return keys if len(set(keys)) == len(keys) else labelled  # where a name itself reads "missile (label 657)"


class TokenizedClassnames(NamedTuple):
    """Class names as token ids, all that an adapter needs to do without a tokenizer.

    Attributes:
        token_ids: per class `[SOS, *name, ".", EOS]`, as tokenised in one string with the full stop.
        name_lengths: per class the number of tokens of the bare name: where "middle" and "front" split.
    """

    token_ids: list[list[int]]
    name_lengths: list[int]


def tokenize_classnames(tokenizer: Any, classnames: Sequence[str]) -> TokenizedClassnames:
    """Tokenise `<name>.` for each class name with a CLIP tokenizer.

    The context in front does not change these tokens, since CLIP's BPE never merges across white space.

    Raises:
        ValueError: a name has no tokens, or the tokenizer's end token among them.
    """
    names = [clean_classname(name) for name in classnames]
    token_ids = tokenizer([f"{name}." for name in names])["input_ids"]
    name_ids = tokenizer(names, add_special_tokens=False)["input_ids"]
    for name, ids, whole in zip(classnames, name_ids, token_ids, strict=True):
        if not ids:
            raise ValueError(f"class name {name!r:.80} has no tokens in this model's vocabulary; use other words")
        if whole[-1] in ids:  # CLIP pools at the first end token; CLIP tokenizers use it for unknowns
            raise ValueError(
                f"class name {name!r:.80} spells {tokenizer.eos_token!s:.80} or has characters that this model's "
                "vocabulary lacks; use other words"
            )
    return TokenizedClassnames([list(ids) for ids in token_ids], [len(ids) for ids in name_ids])


def warn_of_equal_prompts(classnames: Sequence[str], token_ids: Sequence[Sequence[int]]) -> None:
    """Warn once of class names that make the same prompt, as two pairs of ImageNet do, naming them and their labels.

    Such classes have equal logits, unless each class has a context of its own.

    Args:
        classnames (`Sequence[str]`), token_ids: see `tokenize_classnames`.
    """
    same: dict[tuple[int, ...], list[str]] = {}
    for label, (name, ids) in enumerate(zip(classnames, token_ids, strict=True)):
        same.setdefault(tuple(ids), []).append(f"{name!r} (label {label})")
    groups = [" and ".join(names) for names in same.values() if len(names) > 1]
    if groups:
        listed = "; ".join(groups[:MAX_NAMED_GROUPS]) + (" …" if len(groups) > MAX_NAMED_GROUPS else "")
        warnings.warn(
            f"class names that make the same prompt, so one context for all cannot tell them apart: {listed:.2000}",
            stacklevel=2,
        )


@dataclass(frozen=True)
class PromptLayout:
    """K class prompts as one shared prefix and K tails, sorted by length so that similar ones stand together.

    Context vector m stands among the token ids as `~m`, a negative number.

    Attributes:
        prefix: P ids that start every prompt.
        tails: K lists of ids, in order of length; each has at least EOS.
        order: (K,) the class of each tail.
    """

    prefix: list[int]
    tails: list[list[int]]
    order: list[int]

    @classmethod
    def build(
        cls,
        names: TokenizedClassnames,
        n_ctx: int,
        class_token_position: str = "end",
        class_specific_context: bool = False,
    ) -> PromptLayout:
        """Lay out the prompts of K tokenised class names around `n_ctx` context vectors.

        Args:
            names: see `tokenize_classnames`.
            n_ctx (`int`): context vectors in each prompt, M.
            class_token_position (`str`): "end" `[V]_1…[V]_M name .`, "middle" (the name after the first `M // 2`
                vectors) or "front".
            class_specific_context (`bool`): each class has M vectors of its own (CSC): class k's vector m is number
                `k * M + m`.
        """
        half = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_token_position]
        prompts = []
        for k, (sos, *words) in enumerate(names.token_ids):
            first = k * n_ctx if class_specific_context else 0
            context = [~m for m in range(first, first + n_ctx)]
            split = 0 if class_token_position == "end" else names.name_lengths[k]
            prompts.append([sos, *context[:half], *words[:split], *context[half:], *words[split:]])
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        prefix = [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, columns)]
        order = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))
        return cls(prefix, [prompts[k][len(prefix) :] for k in order], order)

    def __len__(self) -> int:
        return len(self.tails)

    @property
    def prefix_length(self) -> int:
        """P, the number of tokens that all prompts share."""
        return len(self.prefix)

    @cached_property
    def n_tail_tokens(self) -> int:
        """Sum of the tails' lengths, EOS included."""
        return sum(map(len, self.tails))

    @property
    def longest(self) -> int:
        """Number of positions that the longest prompt takes."""
        return self.prefix_length + len(self.tails[-1])

    @cached_property
    def block_size(self) -> int:
        """How many tokens of whole tails to pack into one block of attention: what leaves the fewest scores."""
        longest = len(self.tails[-1])
        sizes = range(max(longest, SMALLEST_BLOCK), max(longest, 2 * SMALLEST_BLOCK) + 1)
        return min(sizes, key=lambda size: len(self._pack(size)) * size * (self.prefix_length + size))

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """The tails in runs, first to stop, of at most `block_size` tokens."""
        return self._pack(self.block_size)

    def _pack(self, size: int) -> list[tuple[int, int]]:
        blocks, first, tokens = [], 0, 0
        for number, tail in enumerate(self.tails):
            if tokens + len(tail) > size:
                blocks.append((first, number))
                first, tokens = number, 0
            tokens += len(tail)
        return [*blocks, (first, len(self))]

    def select(self, start: int, stop: int) -> PromptLayout:
        """The layout of tails `start` to `stop` alone; its `order` still names the original classes."""
        return PromptLayout(self.prefix, self.tails[start:stop], self.order[start:stop])

    def split(self, size: int) -> list[PromptLayout]:
        """The layout in parts of at most `size` tails, made once."""
        return [self] if len(self) <= size else self.once(PromptLayout._split, size)

    def _split(self, size: int) -> list[PromptLayout]:
        return [self.select(start, start + size) for start in range(0, len(self), size)]

    def shares(self, count: int) -> list[PromptLayout]:
        """The layout in `count` parts of about equal numbers of tokens, made once. With few tails some are empty."""
        return [self] if count == 1 else self.once(PromptLayout._shares, count)

    def _shares(self, count: int) -> list[PromptLayout]:
        middles = [end - len(tail) / 2 for end, tail in zip(accumulate(map(len, self.tails)), self.tails, strict=True)]
        cuts = [bisect(middles, self.n_tail_tokens * part / count) for part in range(count + 1)]
        return [self.select(start, stop) for start, stop in pairwise(cuts)]

    def once(self, make: Callable[..., Any], *args: Hashable) -> Any:
        """`make(layout, *args)`, made once for these arguments and kept with the layout."""
        made = self._made
        if (make, args) not in made:
            # Inference mode's tensors could not be used in training later, those of `torch.export` hold no values.
            with torch.inference_mode(False), _disable_current_modes():
                made[make, args] = make(self, *args)
        return made[make, args]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept for speed, so that a copy is the same before and after a prediction."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _made(self) -> dict[Any, Any]:
        return {}

    def check_fits(self, max_positions: int, classnames: Sequence[str]) -> None:
        """Raise `ValueError` if the longest prompt takes more than the text tower's `max_positions`."""
        if self.longest > max_positions:
            name = classnames[self.order[-1]]
            raise ValueError(
                f"the prompt of class name {name!r:.80} takes {self.longest} positions (context, name, full stop, "
                f"start and end tokens), but the text tower has {max_positions}: shorten the name or lower n_ctx"
            )

    def tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The layout's index tensors on `device`, copied there once."""
        return self.once(PromptLayout._tensors, device)

    def _tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        ids = torch.tensor(self.prefix + [i for tail in self.tails for i in tail])
        lengths = torch.tensor([len(tail) for tail in self.tails])
        positions = [*range(self.prefix_length)]
        for tail in self.tails:
            positions.extend(range(self.prefix_length, self.prefix_length + len(tail)))
        context_at = (ids < 0).nonzero()[:, 0]
        index = {
            "ids": ids.clamp(min=0),  # (P + T,)
            "positions": torch.tensor(positions),  # (P + T,)
            "context_at": context_at,  # (C,) places of the context vectors
            "context": ~ids[context_at],  # (C,) which they are
            "eos": lengths.cumsum(0) - 1,  # (K,) within the tails
            "class_order": torch.argsort(torch.tensor(self.order)),  # (K,) tails back to label order
        }
        return {name: tensor.to(device) for name, tensor in index.items()}
