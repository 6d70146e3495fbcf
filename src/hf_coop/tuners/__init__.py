"""The methods, one folder each: config, prompt learner, tuner. Importing this registers them with PEFT.

`docs/adding-a-method.md` shows what to write for another one.
"""

from .cocoop import CoCoOpConfig, CoCoOpModel
from .config import PromptConfig
from .coop import CoOpConfig, CoOpModel
from .kgcoop import KgCoOpConfig, KgCoOpModel
from .model import PromptModel
from .prograd import ProGradConfig, ProGradModel
from .registration import config_class_of, make_prompt_arguments, prompt_options, register_method

__all__ = [name for name in dir() if name.endswith(("Config", "Model"))]
