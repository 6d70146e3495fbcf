"""Training a prompt: the trainer's loop, its arguments, optimizers, checkpoints and progress."""

from .arguments import CoOpTrainingArguments
from .checkpoints import check_output_dir, list_checkpoints, wants_resume
from .cross_validation import cross_validate
from .fit import describe_source, fit, learn_prompt, timed
from .recipes import starting_prompt
from .run import PromptRun
from .selection import check_validation
from .trainer import CoOpTrainer

__all__ = [
    "CoOpTrainer",
    "CoOpTrainingArguments",
    "PromptRun",
    "check_output_dir",
    "check_validation",
    "cross_validate",
    "describe_source",
    "fit",
    "learn_prompt",
    "list_checkpoints",
    "starting_prompt",
    "timed",
    "wants_resume",
]
