"""`CoCoOpModel`: puts CoCoOp prompts on a CLIPModel."""

from __future__ import annotations

from ..coop.model import CoOpModel
from .layer import CoCoOpLayer


class CoCoOpModel(CoOpModel):
    """The CoCoOp tuner (arXiv 2203.05557): freezes CLIP and trains context vectors and a meta-network.

    Use it by [`HFCoOp`]: `CLIPModel.forward` cannot make the text side depend on the image. Takes the arguments of
    [`CoOpModel`], with a [`CoCoOpConfig`].
    """

    tuner_layer_cls = CoCoOpLayer
