"""`ProGradModel`: puts ProGrad prompts on a CLIPModel."""

from __future__ import annotations

from ..model import PromptModel
from .layer import ProGradPromptLearner


class ProGradModel(PromptModel):
    """The ProGrad tuner (arXiv 2205.14865): freezes CLIP and trains context vectors along its own knowledge.

    Train it by [`HFCoOp`], whose loss has ProGrad's gradient. Takes the arguments of [`PromptModel`], with a
    [`ProGradConfig`].
    """

    prompt_learner_cls = ProGradPromptLearner
