"""The processes of a run: their Accelerator, and what they agree on."""

from __future__ import annotations

from datetime import timedelta

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs

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
        kwargs_handlers=[InitProcessGroupKwargs(timeout=ENCODING_TIMEOUT)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fp16 needs a GPU: use bf16 or full precision on a CPU")
    return accelerator
