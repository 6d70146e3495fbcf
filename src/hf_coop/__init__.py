"""hf-coop: few-shot prompt learning for CLIP, at home in the Hugging Face ecosystem.

Importing it registers the methods COOP and COCOOP with PEFT.
"""

from .modeling import HFCoOp
from .tuners.coop import CoOpConfig, CoOpModel
from .version import __version__

__all__ = ["CoOpConfig", "CoOpModel", "HFCoOp", "__version__"]
