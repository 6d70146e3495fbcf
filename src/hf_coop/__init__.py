"""hf-coop: few-shot prompt learning for CLIP, at home in the Hugging Face ecosystem.

Importing it registers the methods with PEFT: COOP, COCOOP, ….
"""

from typing import TYPE_CHECKING, Any

from .modeling import HFCoOp as HFCoOp
from .tuners import *  # noqa: F403 - the config and the tuner of each method
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .training.arguments import CoOpTrainingArguments as CoOpTrainingArguments
    from .training.fit import fit as fit
    from .training.trainer import CoOpTrainer as CoOpTrainer


def __getattr__(name: str) -> Any:
    """Training is imported when it is asked for: using a prompt needs neither accelerate nor datasets (PEP 562)."""
    if name in ("CoOpTrainer", "CoOpTrainingArguments", "fit"):
        from . import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
