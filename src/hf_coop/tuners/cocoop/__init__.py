"""CoCoOp (arXiv 2203.05557) as a PEFT method."""

from ..registration import register_method
from .config import CoCoOpConfig
from .layer import CoCoOpPromptLearner, MetaNet
from .model import CoCoOpModel

__all__ = ["CoCoOpConfig", "CoCoOpModel", "CoCoOpPromptLearner", "MetaNet"]

register_method(CoCoOpConfig, CoCoOpModel)
