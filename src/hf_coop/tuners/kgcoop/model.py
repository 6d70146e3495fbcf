"""`KgCoOpModel`: puts KgCoOp prompts on a CLIPModel."""

from __future__ import annotations

from ..model import PromptModel
from .layer import KgCoOpPromptLearner


class KgCoOpModel(PromptModel):
    """The KgCoOp tuner (arXiv 2303.13283): freezes CLIP and trains context vectors near to a hand-written prompt.

    Train it by [`HFCoOp`], whose loss is KgCoOp's. Takes the arguments of [`PromptModel`], with a [`KgCoOpConfig`].
    """

    prompt_learner_cls = KgCoOpPromptLearner
