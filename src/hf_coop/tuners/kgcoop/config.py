"""`KgCoOpConfig`: what a prompt that stays near to a hand-written one is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...encoding.templates import DEFAULT_TEMPLATE
from ..coop.config import CoOpConfig


@dataclass
class KgCoOpConfig(CoOpConfig):
    """Configuration of KgCoOp (arXiv 2303.13283): CoOp's prompts, kept near to a hand-written one in training.

    Takes the arguments of [`CoOpConfig`], where giving neither n_ctx nor ctx_init means the paper's
    `ctx_init="a photo of a"`, and:

    The paper trains with SGD at learning rate 0.002 for 100 epochs of batch 128, whatever the number of shots.

    Args:
        template (`str`): the hand-written prompt, with `{}` where the class name goes. It is saved with the adapter;
            its features are not, so going on with training takes a tokenizer. Predicting does not.
        kgcoop_weight (`float`): the weight λ (the published code's `W`) of the distance to the features of
            `template`; 0 is CoOp.

    Raises:
        TypeError, ValueError: at construction, naming the value that is wrong.
    """

    label: ClassVar[str] = "KgCoOp"
    citation: ClassVar[str] = """@inproceedings{yao2023kgcoop,
  title = {Visual-Language Prompt Tuning with Knowledge-guided Context Optimization},
  author = {Yao, Hantao and Zhang, Rui and Xu, Changsheng},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2023}
}"""
    default_ctx_init: ClassVar[str | None] = "a photo of a"
    default_n_ctx: ClassVar[int] = 4

    template: str = field(default=DEFAULT_TEMPLATE, metadata={"help": "Hand-written prompt that training keeps to."})
    kgcoop_weight: float = field(default=8.0, metadata={"help": "Weight of the distance to the template."})

    @classmethod
    def default_recipe(cls, num_shots: int) -> dict[str, Any]:
        """The published 100 epochs of batch 128, at any number of shots."""
        return {"num_train_epochs": 100, "per_device_train_batch_size": 128}

    @classmethod
    def fast_recipe(cls, num_shots: int) -> dict[str, Any] | None:
        """L-BFGS on smoothed labels; what holds the classes near the hand-written prompt is the method's own term."""
        return {"optim": "lbfgs", "label_smoothing_factor": 0.1}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers("kgcoop_weight")
