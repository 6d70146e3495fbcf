"""The optimizers of `CoOpTrainingArguments.optim`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .arguments import CoOpTrainingArguments


def make_optimizer(parameters: Sequence[nn.Parameter], args: CoOpTrainingArguments) -> torch.optim.Optimizer:
    """The optimizer that `args.optim` names."""
    if args.optim == "sgd":
        return torch.optim.SGD(
            parameters, lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
        )
    kind = torch.optim.Adam if args.optim == "adam" else torch.optim.AdamW
    betas = (args.adam_beta1, args.adam_beta2)
    return kind(parameters, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, weight_decay=args.weight_decay)
