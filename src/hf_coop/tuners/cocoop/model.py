"""`CoCoOpModel`: puts CoCoOp prompts on a CLIPModel."""

from __future__ import annotations

from ..model import PromptModel
from .layer import CoCoOpPromptLearner


class CoCoOpModel(PromptModel):
    """The CoCoOp tuner (arXiv 2203.05557): freezes CLIP and trains context vectors and a meta-network.

    Use it by [`HFCoOp`]: `CLIPModel.forward` cannot make the text side depend on the image. Takes the arguments of
    [`PromptModel`], with a [`CoCoOpConfig`].
    """

    prompt_learner_cls = CoCoOpPromptLearner
