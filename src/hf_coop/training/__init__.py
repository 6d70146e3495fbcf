"""Training a prompt: the trainer's loop, its arguments, optimizers, checkpoints and progress."""

from .arguments import CoOpTrainingArguments
from .checkpoints import check_output_dir, list_checkpoints, wants_resume
from .cross_validation import cross_validate
from .fit import Measured, describe_source, fit, learn_prompt, measured_details, timed
from .options import RUN_CONFIG_FILE, run_script, write_config
from .recipes import starting_prompt
from .run import PromptRun
from .seeds import SeedArguments, arguments_of_run, train_over_seeds
from .selection import check_validation
from .trainer import CoOpTrainer

__all__ = [
    "RUN_CONFIG_FILE",
    "CoOpTrainer",
    "CoOpTrainingArguments",
    "Measured",
    "PromptRun",
    "SeedArguments",
    "arguments_of_run",
    "check_output_dir",
    "check_validation",
    "cross_validate",
    "describe_source",
    "fit",
    "learn_prompt",
    "list_checkpoints",
    "measured_details",
    "run_script",
    "starting_prompt",
    "timed",
    "train_over_seeds",
    "wants_resume",
    "write_config",
]
