"""`PromptConfig`: what every learned prompt is made of, whatever the method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import CLIPModel

from ..encoding.prompts import (
    SURROGATE,
    PromptLayout,
    TokenizedClassnames,
    check_classnames,
    clean_classname,
    tokenize_classnames,
    warn_of_equal_prompts,
)
from ..encoding.templates import check_templates
from ..pretrained import check_name_or_path, check_revision
from ..version import __version__

MAX_N_CTX = MAX_TOKEN_IDS = 1024  # in one prompt, so that a config cannot ask for any memory; CLIP has 77 positions
LEGACY_EOS_TOKEN_ID = 2  # what old CLIP configs say; such towers pool at the highest token id, which is EOS


class PromptType(str):
    """The name of a method, made to look like a member of PEFT's own `PeftType`, which cannot be added to.

    PEFT and transformers ask for its `value`, and PEFT's status functions for what `str` writes behind the dot.
    """

    @property
    def value(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        return f"PeftType.{self.value}"


@dataclass
class PromptConfig(PeftConfig):
    """What the prompts of all methods have in common; use the config of a method, such as [`CoOpConfig`].

    A method's config class adds the method's own options as fields: those with a `help` in their metadata are options
    of the `hf-coop` command too. Its class attributes say the rest that is to be known of the method.

    Attributes:
        label (`str`): the method as its paper spells it, "CoOp". In lower case it is the `method` of
            [`HFCoOp.from_clip`] and the command, in upper case the `peft_type`.
        citation (`str`): the paper, in BibTeX.
        default_ctx_init (`str`, *optional*), default_n_ctx (`int`): what the context starts from unless told.
        depends_on_image (`bool`): whether each image has class prompts of its own.
        fast_ctx_init (`str`): what the context starts from with the recipe "fast", unless told.
        no_fast_recipe (`str`): why there is none, where `fast_recipe` gives None.
        also_learned (`str`): what the method learns besides context vectors, for the model card.
        class_token_position (`str`), class_specific_context (`bool`): as in [`CoOpConfig`], for methods that have no
            such options.
        template (`str`): the hand-written prompt that training compares with; empty for methods that have no such
            option. Those that have one get its checks from here.

    Args:
        classnames (`list[str]`): one name a class, in label order. Underscores become spaces in the prompt. Names
            that make the same prompt are allowed, with a warning; their logits are equal unless the context is
            class-specific.
        n_ctx (`int`, *optional*): context vectors M. Default: the number of BPE tokens of `ctx_init`.
        ctx_init (`str`, *optional*): words whose embeddings the context starts from, "a photo of a". Where only
            `n_ctx` is given, the context is drawn from a normal distribution with standard deviation 0.02; where
            neither is, the method says (16 random vectors for CoOp).
        learn_temperature (`bool`): also learn CLIP's `logit_scale`, saved with the adapter.
        tokenizer_name_or_path (`str`, *optional*): default: the base model's.
        token_ids, name_lengths, ctx_token_ids: class names and `ctx_init` as token ids
            (`prompts.TokenizedClassnames`), filled in when the adapter is put on a model, so that it loads without a
            tokenizer.
        hf_coop_version (`str`): the version that wrote the config.

    Raises:
        TypeError, ValueError: at construction, naming the value that is wrong.
    """

    label: ClassVar[str]
    citation: ClassVar[str]
    default_ctx_init: ClassVar[str | None] = None
    default_n_ctx: ClassVar[int] = 16
    fast_ctx_init: ClassVar[str] = "a photo of a"
    no_fast_recipe: ClassVar[str] = "its prompts depend on the image, so a pass costs more with each image"
    depends_on_image: ClassVar[bool] = False
    also_learned: ClassVar[str] = ""
    class_token_position = "end"
    class_specific_context = False
    template = ""

    classnames: list[str] = None  # type: ignore[assignment]
    n_ctx: int | None = field(default=None, metadata={"help": "Context vectors; default: the method's."})
    ctx_init: str | None = field(default=None, metadata={"help": "Words to start from, 'a photo of a'."})
    learn_temperature: bool = False
    tokenizer_name_or_path: str | None = None
    token_ids: list[list[int]] | None = None
    name_lengths: list[int] | None = None
    ctx_token_ids: list[int] | None = None
    target_modules: list[str] = field(default_factory=lambda: ["text_model"])
    hf_coop_version: str = __version__

    def __new__(cls, *args: Any, **kwargs: Any) -> PromptConfig:
        own = {field.name for field in fields(cls)}
        for name in kwargs.keys() - own:
            owners = [config.label for config in registered_configs() if name in config.__dataclass_fields__]
            if owners:
                raise ValueError(
                    f"{name}={kwargs[name]!r:.80} is an option of {', '.join(owners)}, not of {cls.label}, which has "
                    f"{', '.join(option_fields(cls))}"
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PromptType(self.label.upper())
        if self.n_ctx is None and self.ctx_init is None:
            self.n_ctx, self.ctx_init = self.default_n_ctx, self.default_ctx_init
        # PEFT builds a config without arguments in places; the names are then checked when a model is made.
        if self.classnames is not None:
            self.classnames = check_classnames(self.classnames)
        if self.ctx_init is not None and not (isinstance(self.ctx_init, str) and clean_classname(self.ctx_init)):
            raise ValueError(f"ctx_init must hold words such as 'a photo of a', got {self.ctx_init!r:.80}")
        if self.ctx_init is not None and SURROGATE.search(self.ctx_init):
            raise ValueError(f"ctx_init is {self.ctx_init!r:.80}: it has half a character (a lone surrogate)")
        if self.n_ctx is not None and (type(self.n_ctx) is not int or not 1 <= self.n_ctx <= MAX_N_CTX):
            raise ValueError(f"n_ctx must be a whole number from 1 to {MAX_N_CTX}, got {self.n_ctx!r:.40}")
        self._check_flags("learn_temperature")
        if "template" in self.__dataclass_fields__:
            (self.template,) = check_templates([self.template])
        self._check_peft_fields()
        self._check_token_ids()
        self._check_ctx_token_ids()

    def _check_peft_fields(self) -> None:
        for name in ("base_model_name_or_path", "tokenizer_name_or_path"):
            check_name_or_path(name, getattr(self, name))
        check_revision(self.revision)
        if self.task_type is not None:  # PEFT would make a model of another class than HFCoOp for it
            raise ValueError(f"task_type must be left out, got {self.task_type!r:.80}")
        if self.target_modules != ["text_model"]:
            raise ValueError(f"target_modules must be ['text_model'], got {self.target_modules!r:.80}")

    def _check_flags(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be true or false, got {getattr(self, name)!r:.80}")

    def _check_numbers(self, *names: str, zero: bool = True) -> None:
        """Raise unless these options are finite numbers above 0, or 0 where that is allowed."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r:.80} of type {type(value).__name__}")
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
                bound = "of at least 0" if zero else "above 0"
                raise ValueError(f"{name} must be a finite number {bound}, got {value!r:.80}")

    def _check_token_ids(self) -> None:
        if self.token_ids is None and self.name_lengths is None:
            return
        n_classes = len(self.classnames or [])
        for name, values in (("token_ids", self.token_ids), ("name_lengths", self.name_lengths)):
            if not isinstance(values, list) or len(values) != n_classes:
                found = f"{len(values)} entries" if isinstance(values, list) else f"{values!r:.80}"
                raise ValueError(f"{name} must hold one entry for each of the {n_classes} class names, found {found}")
        ends = set()
        for name, ids, length in zip(self.classnames, self.token_ids, self.name_lengths, strict=True):  # type: ignore[arg-type]
            whole = isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)
            if not whole or not 3 <= len(ids) <= MAX_TOKEN_IDS:
                raise ValueError(
                    f"token_ids of class name {name!r:.80} must be 3 to {MAX_TOKEN_IDS} ids from start to end"
                )
            if type(length) is not int or not 1 <= length <= len(ids) - 2:
                raise ValueError(
                    f"name_lengths of class name {name!r:.80} is {length!r:.80}, its tokens are {ids!s:.80}"
                )
            ends.add((ids[0], ids[-1]))
        if len(ends) > 1:
            raise ValueError(f"token_ids start and end with different tokens: {sorted(ends)[:4]!s:.80}")

    def _check_ctx_token_ids(self) -> None:
        ids = self.ctx_token_ids
        if ids is None:
            return
        whole = isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)
        if not whole or len(ids) != self.n_ctx:
            raise ValueError(f"ctx_token_ids must be n_ctx={self.n_ctx} token ids, got {ids!r:.80}")

    @classmethod
    def default_recipe(cls, num_shots: int) -> dict[str, Any]:
        """The published training arguments, where they are not the defaults of `CoOpTrainingArguments`.

        Those of CoOp: 50 epochs for 1 image a class, 100 for 2 to 4, 200 for more.

        Args:
            num_shots (`int`): training images of the largest class.
        """
        return {"num_train_epochs": 50 if num_shots <= 1 else 100 if num_shots <= 4 else 200}

    @classmethod
    def fast_recipe(cls, num_shots: int) -> dict[str, Any] | None:
        """The training arguments of the recipe "fast", or None where the method has none (`no_fast_recipe` says why).

        L-BFGS on smoothed labels; the fewer images, the more class embeddings are held near the hand-written prompt's.

        Args:
            num_shots (`int`): training images of the largest class.
        """
        if cls.depends_on_image:
            return None
        return {"optim": "lbfgs", "label_smoothing_factor": 0.1, "anchor_weight": 0.15 / num_shots}

    @property
    def needs_tokenizer(self) -> bool:
        """Whether anything is still words only."""
        return self.token_ids is None or (self.ctx_init is not None and self.ctx_token_ids is None)

    def tokenize(self, tokenizer: Any) -> None:
        """Fill in `token_ids` and `name_lengths`, and for `ctx_init` also `ctx_token_ids` and `n_ctx`.

        This is done once for a list of class names, so here is where a warning names those that make the same prompt.
        """
        if self.ctx_init is not None and (self.ctx_init, self.n_ctx) == (self.default_ctx_init, self.default_n_ctx):
            self.n_ctx = None  # 4 in CLIP's vocabulary, another number in the small ones of test models
        if not self.classnames:
            raise ValueError("the config has no classnames: give one name a class, in label order")
        if self.ctx_init is not None:
            ids = list(tokenizer(clean_classname(self.ctx_init), add_special_tokens=False)["input_ids"])
            if not ids:
                raise ValueError(f"ctx_init={self.ctx_init!r:.80} has no tokens in this model's vocabulary")
            if self.n_ctx not in (None, len(ids)):
                raise ValueError(
                    f"n_ctx={self.n_ctx} is in conflict with ctx_init={self.ctx_init!r:.80}, which is {len(ids)} "
                    "tokens: leave one of the two out"
                )
            self.n_ctx, self.ctx_token_ids = len(ids), ids
        self.token_ids, self.name_lengths = tokenize_classnames(tokenizer, self.classnames)
        warn_of_equal_prompts(self.classnames, self.token_ids)

    def check_fits(self, model: CLIPModel, tokenizer: Any = None) -> None:
        """Raise `ValueError` unless the model's vocabulary has the token ids, and its text tower room for all prompts.

        Args:
            model (`CLIPModel`): the model it is for.
            tokenizer (*optional*): the model's. Without one the hand-written template, which an adapter does not hold
                as token ids, is not checked.
        """
        text_config, token_ids = model.config.text_config, self.token_ids or []
        largest = max(i for ids in (*token_ids, self.ctx_token_ids or []) for i in ids)
        eos = token_ids[0][-1]
        if largest >= text_config.vocab_size or text_config.eos_token_id not in (eos, LEGACY_EOS_TOKEN_ID):
            raise ValueError(
                f"the adapter's token ids (up to {largest!r:.40}, end token {eos!r:.40}) are not those of the "
                f"base model {model.name_or_path!r:.80} ({text_config.vocab_size} tokens, end token "
                f"{text_config.eos_token_id!s:.40}): it was made for a model with another tokenizer"
            )
        longest = max(range(len(token_ids)), key=lambda k: len(token_ids[k]))  # all at once may be too many to lay out
        room, name = text_config.max_position_embeddings, self.classnames[longest]
        self.layout([longest]).check_fits(room, [name])
        if self.template and tokenizer is not None:
            # A sum, because a stranger's template may repeat a long name until the whole prompt fills the memory.
            words = len(tokenizer(self.template.replace("{}", ""))["input_ids"])
            length = words + self.template.count("{}") * (len(token_ids[longest]) - 3)  # all but start, stop and end
            if length > room:
                raise ValueError(
                    f"template={self.template!r:.80} makes a prompt of {length} tokens for class name {name!r:.80}, "
                    f"but the text tower has {room} positions: shorten the template"
                )

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
        return PromptLayout.build(names, self.n_ctx, self.class_token_position, self.class_specific_context)


def registered_configs() -> list[type[PromptConfig]]:
    """The config classes of all methods that are registered with PEFT, in the order of registration."""
    return [config for config in PEFT_TYPE_TO_CONFIG_MAPPING.values() if issubclass(config, PromptConfig)]


def option_fields(config_class: type[PromptConfig]) -> dict[str, Field]:
    """The fields of a config that are options of the command: those with a help, but for PEFT's own."""
    inherited = {field.name for field in fields(PeftConfig)}
    options = (field for field in fields(config_class) if "help" in field.metadata)
    return {option.name: option for option in options if option.name not in inherited}


def own_options(config: PromptConfig) -> dict[str, Any]:
    """The options that a method has beyond those that every config knows of, such as `n_ctx` and `template`."""
    return {name: getattr(config, name) for name in option_fields(type(config)) if not hasattr(PromptConfig, name)}
