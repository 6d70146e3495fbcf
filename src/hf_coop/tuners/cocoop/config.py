"""`CoCoOpConfig`: what a prompt conditioned on the image is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config import PromptConfig


@dataclass
class CoCoOpConfig(PromptConfig):
    """Configuration of CoCoOp (arXiv 2203.05557): a learned context, to which a small network adds a bias per image.

    The class name stands at the end and all classes share one context, as in the paper. Takes the arguments of
    [`PromptConfig`] (classnames, n_ctx, ctx_init, learn_temperature, tokenizer_name_or_path), where giving neither
    n_ctx nor ctx_init means the paper's `ctx_init="a photo of a"`, 4 vectors, and n_ctx alone a random start, and:

    The paper trains with SGD at learning rate 0.002 for 10 epochs of batch 1. A batch of b images at b times that
    rate, for as many epochs, is the same schedule in b times fewer, larger steps, each far cheaper than b small ones;
    the default is b = 8. Keep a few steps an epoch: b well below the number of training images.

    Args:
        max_prompts_per_chunk (`int`): how many class prompts (images x classes) to encode at a time. Bounds memory
            at any batch size and number of classes, and changes nothing but rounding; where training takes more
            than one chunk, each is computed again in the backward pass. 256 take about 1 GB beside the model in
            training ViT-B/16. Can be set anew on a loaded model's `prompt_config`.

    Raises:
        TypeError, ValueError: at construction, naming the value that is wrong or the option that only CoOp has.
    """

    label: ClassVar[str] = "CoCoOp"
    citation: ClassVar[str] = """@inproceedings{zhou2022cocoop,
  title = {Conditional Prompt Learning for Vision-Language Models},
  author = {Zhou, Kaiyang and Yang, Jingkang and Loy, Chen Change and Liu, Ziwei},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2022}
}"""
    default_ctx_init: ClassVar[str | None] = "a photo of a"
    default_n_ctx: ClassVar[int] = 4
    depends_on_image: ClassVar[bool] = True
    also_learned: ClassVar[str] = "a small network that shifts them for each image"

    max_prompts_per_chunk: int = field(default=256, metadata={"help": "Class prompts to encode at a time."})

    @classmethod
    def default_recipe(cls, num_shots: int) -> dict[str, Any]:
        """The published 10 epochs, in batches of 8 at 8 times the rate instead of 1."""
        return {"num_train_epochs": 10, "per_device_train_batch_size": 8, "learning_rate": 8 * 0.002}

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.max_prompts_per_chunk) is not int or self.max_prompts_per_chunk < 1:
            raise ValueError(
                f"max_prompts_per_chunk must be a whole number of at least 1, got {self.max_prompts_per_chunk!r}"
            )
