"""The processes of a run: their Accelerator, and how they share work."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs

from ..files import locked_folder
from .arguments import LBFGS, CoOpTrainingArguments

logger = logging.getLogger(__name__)

ENCODING_TIMEOUT = timedelta(hours=12)  # processes wait for each other's share of the images


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
        kwargs_handlers=[InitProcessGroupKwargs(timeout=ENCODING_TIMEOUT)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fp16 needs a GPU: use bf16 or full precision on a CPU")
    return accelerator


def print_processes(accelerator: Accelerator, args: CoOpTrainingArguments, train_batch_size: int) -> None:
    """Say how many processes run and what each update takes; warn where fewer run than were asked for.

    `accelerate launch --num_processes N` starts one process where it finds one GPU or none. All that this process sees
    of N is the address at which N processes would meet, without their number, so the warning cannot name it.

    Args:
        args ([`CoOpTrainingArguments`]): of the trainer, filled in.
        train_batch_size (`int`): images of a batch over all processes; with L-BFGS all images and their views.
    """
    if not accelerator.is_main_process:
        return
    n, accumulated = accelerator.num_processes, args.gradient_accumulation_steps
    processes = f"{n} process{'es' if n > 1 else ''} on {accelerator.device.type}"
    if args.optim == LBFGS:
        print(f"{processes}: all {train_batch_size} image features in each text pass", flush=True)
    else:
        per_process = f"{n} x {args.per_device_train_batch_size}"
        per_update = f"{per_process} x {accumulated} accumulated" if accumulated > 1 else per_process
        print(f"{processes}: global batch {train_batch_size * accumulated} ({per_update})", flush=True)
    if n == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        logger.warning(
            "accelerate launch was asked for several processes, but this one runs alone: without several GPUs it "
            "starts no more. To have N on CPUs: ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes N …"
        )


@contextmanager
def own_folder(accelerator: Accelerator, folder: str) -> Iterator[None]:
    """Keep other runs out of a folder, from when the main process has it until all are done.

    Raises:
        ValueError: another run has it.
    """
    with locked_folder(folder) if accelerator.is_main_process else nullcontext():
        yield
    accelerator.wait_for_everyone()


@contextmanager
def trackers(accelerator: Accelerator, args: CoOpTrainingArguments) -> Iterator[None]:
    """The trackers of `report_to`, started and finished."""
    if args.trackers:
        accelerator.init_trackers("hf_coop", config={name: str(value) for name, value in args.to_dict().items()})
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def own_share(accelerator: Accelerator, total: int) -> range:
    """Which of `total` things are this process's: equal shares in order, of which the last may be smaller or empty."""
    size = math.ceil(total / accelerator.num_processes)
    start = min(total, accelerator.process_index * size)
    return range(start, min(total, start + size))


def gather_shares(accelerator: Accelerator, own: torch.Tensor, total: int) -> torch.Tensor:
    """The rows `(total, …)` of all processes, from each one's `own_share` of them."""
    size = math.ceil(total / accelerator.num_processes)
    return gather_parts(accelerator, own, [size] * accelerator.num_processes)[:total]


def gather_parts(accelerator: Accelerator, own: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The rows of all processes behind each other: process p gives `sizes[p]` of them, zeros where it has fewer."""
    if accelerator.num_processes == 1:
        return own
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    parts = accelerator.gather(padded.to(accelerator.device)).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
