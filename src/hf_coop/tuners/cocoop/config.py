"""`CoCoOpConfig`: what a prompt conditioned on the image is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..coop.config import CoOpConfig, PromptConfig

DEFAULT_CTX_INIT, DEFAULT_N_CTX = "a photo of a", 4


@dataclass
class CoCoOpConfig(PromptConfig):
    """Configuration of CoCoOp (arXiv 2203.05557): a learned context, to which a small network adds a bias per image.

    The class name stands at the end and all classes share one context, as in the paper. Takes the arguments of
    [`PromptConfig`] (classnames, n_ctx, ctx_init, learn_temperature, tokenizer_name_or_path), where giving neither
    n_ctx nor ctx_init means the paper's `ctx_init="a photo of a"`, 4 vectors, and n_ctx alone a random start, and:

    The paper trains with SGD at learning rate 0.002 for 10 epochs of batch 1. A batch of b images at b times that
    rate, for as many epochs, is the same schedule in b times fewer, larger steps, each far cheaper than b small ones;
    keep a few steps an epoch: b well below the number of training images.

    Args:
        max_prompts_per_chunk (`int`): how many class prompts (images x classes) to encode at a time. Bounds memory
            at any batch size and number of classes, and changes nothing but rounding; where training takes more
            than one chunk, each is computed again in the backward pass. 256 take about 1 GB beside the model in
            training ViT-B/16. Can be set anew on a loaded model's `prompt_config`.

    Raises:
        TypeError, ValueError: at construction, naming the value that is wrong or the option that only CoOp has.
    """

    max_prompts_per_chunk: int = field(default=256, metadata={"help": "Class prompts to encode at a time."})

    def __new__(cls, *args: Any, **kwargs: Any) -> CoCoOpConfig:
        for name in kwargs.keys() & (CoOpConfig.__annotations__.keys()):
            raise ValueError(
                f"{name}={kwargs[name]!r} is an option of CoOp: with CoCoOp the class name stands at the end and all "
                f"classes share one context, so leave {name} out"
            )
        return super().__new__(cls)

    @staticmethod
    def default_num_train_epochs(num_shots: int) -> int:
        """The published 10 epochs, at any number of shots."""
        return 10

    def __post_init__(self) -> None:
        if self.n_ctx is None and self.ctx_init is None:
            self.n_ctx, self.ctx_init = DEFAULT_N_CTX, DEFAULT_CTX_INIT
        super().__post_init__()
        self.peft_type = "COCOOP"
        if type(self.max_prompts_per_chunk) is not int or self.max_prompts_per_chunk < 1:
            raise ValueError(
                f"max_prompts_per_chunk must be a whole number of at least 1, got {self.max_prompts_per_chunk!r}"
            )

    def tokenize(self, tokenizer: Any) -> None:
        if self.ctx_init == DEFAULT_CTX_INIT and self.n_ctx == DEFAULT_N_CTX:
            self.n_ctx = None  # 4 in CLIP's vocabulary, another number in the small ones of test models
        super().tokenize(tokenizer)
