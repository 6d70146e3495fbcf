"""CoCoOp (arXiv 2203.05557) as a PEFT method."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import CoCoOpConfig
from .layer import CoCoOpLayer, CoCoOpPromptLearner, MetaNet
from .model import CoCoOpModel

__all__ = ["CoCoOpConfig", "CoCoOpLayer", "CoCoOpModel", "CoCoOpPromptLearner", "MetaNet"]

PEFT_TYPE_TO_CONFIG_MAPPING["COCOOP"] = CoCoOpConfig
PEFT_TYPE_TO_TUNER_MAPPING["COCOOP"] = CoCoOpModel
PEFT_TYPE_TO_PREFIX_MAPPING["COCOOP"] = CoCoOpModel.prefix
