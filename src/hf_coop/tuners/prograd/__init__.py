"""ProGrad (arXiv 2205.14865) as a PEFT method."""

from ..registration import register_method
from .config import ProGradConfig
from .layer import ProGradPromptLearner
from .model import ProGradModel

__all__ = ["ProGradConfig", "ProGradModel", "ProGradPromptLearner"]

register_method(ProGradConfig, ProGradModel)
