"""`CoOpModel`: puts CoOp prompts on a CLIPModel."""

from __future__ import annotations

from ..model import PromptModel


class CoOpModel(PromptModel):
    """The CoOp tuner (arXiv 2109.01134): freezes CLIP and trains context vectors at the input of its text tower.

    Takes the arguments of [`PromptModel`], with a [`CoOpConfig`].
    """
