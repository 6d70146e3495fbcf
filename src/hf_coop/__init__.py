"""hf-coop: few-shot prompt learning for CLIP, at home in the Hugging Face ecosystem.

Importing it registers the methods COOP and COCOOP with PEFT.
"""

from typing import TYPE_CHECKING, Any

from .modeling import HFCoOp
from .tuners.cocoop import CoCoOpConfig, CoCoOpModel
from .tuners.coop import CoOpConfig, CoOpModel
from .version import __version__

if TYPE_CHECKING:
    from .training.arguments import CoOpTrainingArguments
    from .training.trainer import CoOpTrainer

__all__ = [
    "CoCoOpConfig",
    "CoCoOpModel",
    "CoOpConfig",
    "CoOpModel",
    "CoOpTrainer",
    "CoOpTrainingArguments",
    "HFCoOp",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Training is imported when it is asked for: using a prompt needs neither accelerate nor datasets (PEP 562)."""
    if name == "CoOpTrainer":
        from .training.trainer import CoOpTrainer

        return CoOpTrainer
    if name == "CoOpTrainingArguments":
        from .training.arguments import CoOpTrainingArguments

        return CoOpTrainingArguments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
