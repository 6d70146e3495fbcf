"""`CoOpConfig`: what a CoOp prompt is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...encoding.prompts import CLASS_TOKEN_POSITIONS
from ..config import PromptConfig


@dataclass
class CoOpConfig(PromptConfig):
    """Configuration of CoOp (arXiv 2109.01134): M learned context vectors in place of a prompt's words.

    Takes the arguments of [`PromptConfig`] (classnames, n_ctx, ctx_init, learn_temperature,
    tokenizer_name_or_path), where giving neither n_ctx nor ctx_init means 16 random vectors, and:

    Args:
        class_token_position (`str`): where the class name stands: "end" (`[V]_1…[V]_M name.`), "middle" (after the
            first `M // 2` vectors) or "front".
        class_specific_context (`bool`): learn a context for each class (CSC), `ctx` of shape `(K, M, dim)`, instead
            of one for all, `(M, dim)`.
    """

    label: ClassVar[str] = "CoOp"
    citation: ClassVar[str] = """@article{zhou2022coop,
  title = {Learning to Prompt for Vision-Language Models},
  author = {Zhou, Kaiyang and Yang, Jingkang and Loy, Chen Change and Liu, Ziwei},
  journal = {International Journal of Computer Vision},
  year = {2022}
}"""

    class_token_position: str = field(
        default="end", metadata={"help": "Where the class name stands.", "choices": CLASS_TOKEN_POSITIONS}
    )
    class_specific_context: bool = field(default=False, metadata={"help": "Learn one context for each class."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_flags("class_specific_context")
        if self.class_token_position not in CLASS_TOKEN_POSITIONS:
            raise ValueError(
                f"class_token_position must be one of {', '.join(CLASS_TOKEN_POSITIONS)}, "
                f"got {self.class_token_position!r}"
            )
