"""Training a prompt: the trainer's loop, its arguments, optimizers, checkpoints and progress."""

from .arguments import CoOpTrainingArguments
from .checkpoints import check_output_dir, list_checkpoints, wants_resume
from .recipes import starting_prompt
from .trainer import CoOpTrainer

__all__ = [
    "CoOpTrainer",
    "CoOpTrainingArguments",
    "check_output_dir",
    "list_checkpoints",
    "starting_prompt",
    "wants_resume",
]
