"""`CoOpConfig`: what a learned prompt is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from ...encoding.prompts import (
    CLASS_TOKEN_POSITIONS,
    PromptLayout,
    TokenizedClassnames,
    check_classnames,
    clean_classname,
    tokenize_classnames,
)
from ...version import __version__

DEFAULT_N_CTX = 16
MAX_N_CTX = MAX_TOKEN_IDS = 1024  # in one prompt, so that a config cannot ask for any memory; CLIP has 77 positions


@dataclass
class PromptConfig(PeftConfig):
    """What CoOp and CoCoOp prompts have in common; use [`CoOpConfig`] or `CoCoOpConfig`.

    Args:
        classnames (`list[str]`): one name a class, in label order. Underscores become spaces in the prompt.
        n_ctx (`int`, *optional*): context vectors M. Default: 16, or the number of BPE tokens of `ctx_init`.
        ctx_init (`str`, *optional*): words whose embeddings the context starts from, "a photo of a". Default:
            drawn from a normal distribution with standard deviation 0.02.
        learn_temperature (`bool`): also learn CLIP's `logit_scale`, saved with the adapter.
        tokenizer_name_or_path (`str`, *optional*): default: the base model's.
        token_ids, name_lengths, ctx_token_ids: class names and `ctx_init` as token ids
            (`prompts.TokenizedClassnames`), filled in when the adapter is put on a model, so that it loads without a
            tokenizer.
        hf_coop_version (`str`): the version that wrote the config.

    Raises:
        TypeError, ValueError: at construction, naming the value that is wrong.
    """

    classnames: list[str] = field(default=None, metadata={"help": "One name a class, in label order."})  # type: ignore[arg-type]
    n_ctx: int | None = field(default=None, metadata={"help": "Number of context vectors."})
    ctx_init: str | None = field(default=None, metadata={"help": "Words to start the context from."})
    learn_temperature: bool = field(default=False, metadata={"help": "Learn CLIP's logit_scale too."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Default: the base model's."})
    token_ids: list[list[int]] | None = field(default=None, metadata={"help": "Token ids of each class name."})
    name_lengths: list[int] | None = field(default=None, metadata={"help": "Tokens of each bare class name."})
    ctx_token_ids: list[int] | None = field(default=None, metadata={"help": "Token ids of ctx_init."})
    target_modules: list[str] = field(default_factory=lambda: ["text_model"])
    hf_coop_version: str = __version__

    def __post_init__(self) -> None:
        super().__post_init__()
        # PEFT builds a config without arguments in places; the names are then checked when a model is made.
        if self.classnames is not None:
            self.classnames = check_classnames(self.classnames)
        if self.ctx_init is not None:
            if not isinstance(self.ctx_init, str) or not clean_classname(self.ctx_init):
                raise ValueError(f"ctx_init must hold words such as 'a photo of a', got {self.ctx_init!r}")
        elif self.n_ctx is None:
            self.n_ctx = DEFAULT_N_CTX
        if self.n_ctx is not None and (type(self.n_ctx) is not int or not 1 <= self.n_ctx <= MAX_N_CTX):
            raise ValueError(f"n_ctx must be a whole number from 1 to {MAX_N_CTX}, got {self.n_ctx!r:.40}")
        self._check_flags("learn_temperature")
        self._check_peft_fields()
        self._check_token_ids()
        self._check_ctx_token_ids()

    def _check_peft_fields(self) -> None:
        for name in ("base_model_name_or_path", "revision", "tokenizer_name_or_path"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise TypeError(f"{name} must be a string, got {value!r:.80}")
        if self.task_type is not None:  # PEFT would make a model of another class than HFCoOp for it
            raise ValueError(f"task_type must be left out, got {self.task_type!r:.80}")
        if self.target_modules != ["text_model"]:
            raise ValueError(f"target_modules must be ['text_model'], got {self.target_modules!r:.80}")

    def _check_flags(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, got {getattr(self, name)!r}")

    def _check_token_ids(self) -> None:
        if self.token_ids is None and self.name_lengths is None:
            return
        n_classes = len(self.classnames or [])
        for name, values in (("token_ids", self.token_ids), ("name_lengths", self.name_lengths)):
            if not isinstance(values, list) or len(values) != n_classes:
                found = f"{len(values)} entries" if isinstance(values, list) else repr(values)
                raise ValueError(f"{name} must hold one entry for each of the {n_classes} class names, found {found}")
        ends = set()
        for name, ids, length in zip(self.classnames, self.token_ids, self.name_lengths, strict=True):  # type: ignore[arg-type]
            whole = isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)
            if not whole or not 3 <= len(ids) <= MAX_TOKEN_IDS:
                raise ValueError(
                    f"token_ids of class name {name!r} must be 3 to {MAX_TOKEN_IDS} ids from start to end"
                )
            if type(length) is not int or not 1 <= length <= len(ids) - 2:
                raise ValueError(f"name_lengths of class name {name!r} is {length!r}, its tokens are {ids}")
            ends.add((ids[0], ids[-1]))
        if len(ends) > 1:
            raise ValueError(f"token_ids start and end with different tokens: {sorted(ends)[:4]}")

    def _check_ctx_token_ids(self) -> None:
        ids = self.ctx_token_ids
        if ids is None:
            return
        whole = isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)
        if not whole or len(ids) != self.n_ctx:
            raise ValueError(f"ctx_token_ids must be n_ctx={self.n_ctx} token ids, got {ids!r:.80}")

    @staticmethod
    def default_num_train_epochs(num_shots: int) -> int:
        """The published number of epochs: 50 for 1 image a class, 100 for 2 to 4, 200 for more."""
        if num_shots <= 1:
            return 50
        return 100 if num_shots <= 4 else 200

    @property
    def needs_tokenizer(self) -> bool:
        """Whether anything is still words only."""
        return self.token_ids is None or (self.ctx_init is not None and self.ctx_token_ids is None)

    def tokenize(self, tokenizer: Any) -> None:
        """Fill in `token_ids` and `name_lengths`, and for `ctx_init` also `ctx_token_ids` and `n_ctx`."""
        if not self.classnames:
            raise ValueError("the config has no classnames: give one name a class, in label order")
        if self.ctx_init is not None:
            ids = list(tokenizer(clean_classname(self.ctx_init), add_special_tokens=False)["input_ids"])
            if not ids:
                raise ValueError(f"ctx_init={self.ctx_init!r} has no tokens in this model's vocabulary")
            if self.n_ctx not in (None, len(ids)):
                raise ValueError(
                    f"n_ctx={self.n_ctx} is in conflict with ctx_init={self.ctx_init!r}, which is {len(ids)} "
                    "tokens: leave one of the two out"
                )
            self.n_ctx, self.ctx_token_ids = len(ids), ids
        self.token_ids, self.name_lengths = tokenize_classnames(tokenizer, self.classnames)

    def layout(self, classes: Sequence[int] | None = None) -> PromptLayout:
        """The token layout of the class prompts, or of those of some `classes` only."""
        assert self.token_ids is not None
        assert self.name_lengths is not None
        assert self.n_ctx is not None
        names = TokenizedClassnames(self.token_ids, self.name_lengths)
        if classes is not None:
            names = TokenizedClassnames(
                [names.token_ids[k] for k in classes], [names.name_lengths[k] for k in classes]
            )
        return PromptLayout.build(names, self.n_ctx, **self.layout_options())

    def layout_options(self) -> dict[str, Any]:
        """What the method adds to the layout: options of `PromptLayout.build`."""
        return {}


@dataclass
class CoOpConfig(PromptConfig):
    """Configuration of CoOp (arXiv 2109.01134): M learned context vectors in place of a prompt's words.

    Takes the arguments of [`PromptConfig`] (classnames, n_ctx, ctx_init, learn_temperature,
    tokenizer_name_or_path) and:

    Args:
        class_token_position (`str`): where the class name stands: "end" (`[V]_1…[V]_M name.`), "middle" (after the
            first `M // 2` vectors) or "front".
        class_specific_context (`bool`): learn a context for each class (CSC), `ctx` of shape `(K, M, dim)`, instead
            of one for all, `(M, dim)`.
    """

    class_token_position: str = field(default="end", metadata={"help": "end, middle or front."})
    class_specific_context: bool = field(default=False, metadata={"help": "Learn one context for each class."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "COOP"
        self._check_flags("class_specific_context")
        if self.class_token_position not in CLASS_TOKEN_POSITIONS:
            raise ValueError(
                f"class_token_position must be one of {', '.join(CLASS_TOKEN_POSITIONS)}, "
                f"got {self.class_token_position!r}"
            )

    def layout_options(self) -> dict[str, Any]:
        return {
            "class_token_position": self.class_token_position,
            "class_specific_context": self.class_specific_context,
        }
