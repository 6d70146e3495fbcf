"""`ProGradConfig`: what a prompt that is trained along CLIP's own knowledge is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...encoding.templates import DEFAULT_TEMPLATE
from ..coop.config import CoOpConfig


@dataclass
class ProGradConfig(CoOpConfig):
    """Configuration of ProGrad (arXiv 2205.14865): CoOp's prompts, trained only where zero-shot CLIP does not object.

    Takes the arguments of [`CoOpConfig`], with its defaults and its recipe, and:

    Args:
        template (`str`): the hand-written prompt of zero-shot CLIP, with `{}` where the class name goes. It is saved
            with the adapter; its features are not, so going on with training takes a tokenizer. Predicting does not.
        prograd_lambda (`float`): λ, how much of the part that opposes zero-shot CLIP is taken off the gradient; 0 is
            CoOp.
        prograd_temperature (`float`): T, by which both logits are divided where they are compared.

    Raises:
        TypeError, ValueError: at construction, naming the value that is wrong.
    """

    label: ClassVar[str] = "ProGrad"
    citation: ClassVar[str] = """@inproceedings{zhu2023prograd,
  title = {Prompt-aligned Gradient for Prompt Tuning},
  author = {Zhu, Beier and Niu, Yulei and Han, Yucheng and Wu, Yue and Zhang, Hanwang},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year = {2023}
}"""

    no_fast_recipe: ClassVar[str] = "its gradient is merged from two losses, so there is no loss for a line search"

    template: str = field(default=DEFAULT_TEMPLATE, metadata={"help": "Hand-written prompt that training keeps to."})
    prograd_lambda: float = field(default=1.0, metadata={"help": "How much of opposing gradients is taken off."})
    prograd_temperature: float = field(default=1.0, metadata={"help": "Of the logits that are compared."})

    @classmethod
    def fast_recipe(cls, num_shots: int) -> dict[str, Any] | None:
        """None: see `no_fast_recipe`."""
        return None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers("prograd_lambda")
        self._check_numbers("prograd_temperature", zero=False)
