"""What the training arguments ask for, made: accelerator and optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from .arguments import CoOpTrainingArguments

ENCODING_TIMEOUT = timedelta(hours=12)  # the other processes wait while the main one encodes the images


def make_accelerator(args: CoOpTrainingArguments) -> Accelerator:
    """The Accelerator that `args` ask for.

    Raises:
        ValueError: it cannot be had: fp16 on a CPU, or a tracker that is not installed.
    """
    if missing := sorted(set(args.trackers) - {"all", *map(str, get_available_trackers())}):
        raise ValueError(f"report_to={missing[0]!r} is unknown or not installed: install it, or choose another")
    AcceleratorState._reset_state()  # of a trainer before, in a notebook or a sweep, as transformers.Trainer does
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        cpu=args.use_cpu,
        log_with=args.trackers or None,
        project_dir=args.output_dir,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=ENCODING_TIMEOUT),
        ],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fp16 needs a GPU: use bf16 or full precision on a CPU")
    return accelerator


def make_optimizer(parameters: Sequence[nn.Parameter], args: CoOpTrainingArguments) -> torch.optim.Optimizer:
    """The optimizer that `args.optim` names."""
    if args.optim == "sgd":
        return torch.optim.SGD(
            parameters, lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
        )
    kind = torch.optim.Adam if args.optim == "adam" else torch.optim.AdamW
    betas = (args.adam_beta1, args.adam_beta2)
    return kind(parameters, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, weight_decay=args.weight_decay)
