"""KgCoOp (arXiv 2303.13283) as a PEFT method."""

from ..registration import register_method
from .config import KgCoOpConfig
from .layer import KgCoOpPromptLearner
from .model import KgCoOpModel

__all__ = ["KgCoOpConfig", "KgCoOpModel", "KgCoOpPromptLearner"]

register_method(KgCoOpConfig, KgCoOpModel)
