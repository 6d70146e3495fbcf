"""CoOp (arXiv 2109.01134) as a PEFT method."""

from ..registration import register_method
from .config import CoOpConfig
from .model import CoOpModel

__all__ = ["CoOpConfig", "CoOpModel"]

register_method(CoOpConfig, CoOpModel)
