"""CoOp (arXiv 2109.01134) as a PEFT method."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import CoOpConfig, PromptConfig
from .layer import CoOpLayer, PromptLearner
from .model import CoOpModel

__all__ = ["CoOpConfig", "CoOpLayer", "CoOpModel", "PromptConfig", "PromptLearner"]

# peft.utils.register_peft_method takes only names of PEFT's own enum; the tables behind it take any.
PEFT_TYPE_TO_CONFIG_MAPPING["COOP"] = CoOpConfig
PEFT_TYPE_TO_TUNER_MAPPING["COOP"] = CoOpModel
PEFT_TYPE_TO_PREFIX_MAPPING["COOP"] = CoOpModel.prefix
