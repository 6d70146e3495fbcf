"""`CoOpTrainingArguments`: how a prompt is trained. Names are those of `transformers.TrainingArguments`."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar

from ..data.features import FEATURE_DTYPES
from ..encoding import DEFAULT_TEMPLATE, check_templates

LBFGS = "lbfgs"
OPTIMIZERS = ("sgd", "adam", "adamw", LBFGS)
RECIPES = ("paper", "fast")
STRATEGIES = ("no", "steps", "epoch")
ONLINE = "online"


@dataclass
class CoOpTrainingArguments:
    """How a prompt is trained.

    What is left at None is filled in by the recipe when a trainer is made (`training.recipes`).

    Args:
        recipe (`str`, *optional*): "paper": what the method's paper did; for CoOp (arXiv 2109.01134, section 4.1) SGD
            at 0.002 over batches of 32. "fast": L-BFGS over all images at once, held near the hand-written prompt.
            Default: "fast", where the method has it and nothing is asked for that only the paper's optimizers have.
        output_dir (`str`): where everything is written.
        overwrite_output_dir (`bool`): start anew in a folder that holds another run, whose checkpoints are removed.
        num_train_epochs (`int`, *optional*): default: the paper's; for CoOp 50 for 1 image a class, 100 for 2 to 4 and
            200 for more.
        learning_rate (`float`, *optional*): of the first epoch after warm-up; a cosine takes it down to 0, epoch by
            epoch. Default: the paper's, for CoOp 0.002.
        warmup_epochs (`int`), warmup_learning_rate (`float`): the constant rate of the first epochs.
        optim (`str`, *optional*): "sgd", "adam", "adamw" or "lbfgs". Default: the recipe's.
        max_text_passes (`int`, *optional*): evaluations of loss and gradient at most, of L-BFGS. Default: 100.
        momentum (`float`): of SGD.
        weight_decay (`float`, *optional*): of all optimizers; with L-BFGS it is part of the loss. Default: 5e-4 in the
            recipe "paper", 0 in "fast".
        anchor_weight (`float`, *optional*): of a term in the loss that holds the class embeddings near those of a
            hand-written prompt: `anchor_weight * exp(logit_scale) * (1 - mean over classes of their cosine)` (as
            KgCoOp's, arXiv 2303.13283, in logits). Default: 0.15 / images a class in the recipe "fast", else 0.
        label_smoothing_factor (`float`, *optional*): the share of each label that is spread over all classes.
            Default: 0.1 in the recipe "fast", else 0.
        anchor_template (`str`, *optional*): that hand-written prompt, with {} where the class name goes. Default: "a
            photo of a {}.", or in examples/train.py the prompt that is compared with.
        adam_beta1, adam_beta2, adam_epsilon (`float`): of Adam and AdamW.
        per_device_train_batch_size (`int`, *optional*): images in each process at a time. Default: the paper's, for
            CoOp 32.
        per_device_eval_batch_size (`int`): the same in evaluation, and through the image tower.
        gradient_accumulation_steps (`int`): batches to each update.
        dataloader_drop_last (`bool`): drop the last incomplete batch of an epoch, where there is a full one.
        dataloader_num_workers (`int`): processes that read and crop images with `image_views="online"`.
        image_views (`str`): "1": the processor's resize and centre crop; "N": N random crops an image, encoded once,
            of which each epoch draws one; "online": a fresh crop each step, through the image tower (the paper's).
        feature_dtype (`str`): in which the image tower multiplies where features are kept: "auto" (bfloat16 where the
            processor has matrix units for it, else that of the weights), "float32", "bfloat16" or "float16".
        learn_temperature (`bool`): also learn CLIP's `logit_scale`.
        seed (`int`): of the context's first values, the order of images, and the crops.
        bf16, fp16 (`bool`): mixed precision.
        use_cpu (`bool`): leave a GPU alone.
        save_strategy (`str`): "epoch", "steps" or "no": when to write a checkpoint.
        save_steps (`int`): updates between checkpoints, with "steps".
        save_total_limit (`int`, *optional*): checkpoints to keep; the oldest go first.
        eval_strategy (`str`): "epoch" or "no": when to measure accuracy on the trainer's `eval_dataset`.
        load_best_model_at_end (`bool`): keep the prompt of the epoch (with L-BFGS, of the iteration) with the highest
            accuracy on `eval_dataset`, of equal ones the first. Needs `eval_strategy="epoch"`.
        early_stopping_patience (`int`, *optional*): end after so many epochs without a higher accuracy on
            `eval_dataset`. Needs `eval_strategy="epoch"`.
        resume_from_checkpoint (`str`, *optional*): a checkpoint folder, or "True" for the newest in `output_dir`, from
            the beginning if there is none.
        report_to (`list[str]`): trackers of Accelerate: "trackio", "tensorboard", "wandb", …; "none".
        disable_tqdm (`bool`): plain lines instead of the live progress bar.
        push_to_hub (`bool`), hub_model_id, hub_token (`str`, *optional*), hub_private_repo (`bool`): what
            `trainer.push_to_hub()` does; the name of the repository is that of `output_dir` unless given.

    Raises:
        ValueError: a value is out of its range.
    """

    option_groups: ClassVar[dict[str, str]] = {  # in --help, each from its first field on
        "output_dir": "output",
        "recipe": "recipe and optimizer",
        "per_device_train_batch_size": "batches and views",
        "bf16": "machine",
        "save_strategy": "checkpoints and validation",
        "report_to": "tracking and pushing",
    }

    output_dir: str = field(default="prompt-output", metadata={"help": "Where everything is written."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew in a folder that holds another run; its checkpoints are removed."}
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "Default: fast, unless options of the paper's are given.", "choices": RECIPES},
    )
    num_train_epochs: int | None = field(
        default=None, metadata={"help": "Default: the paper's; CoOp's: 50 for 1 shot, 100 for 2 to 4, 200 for more."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the cosine; default: the paper's, 0.002 for CoOp."}
    )
    warmup_epochs: int = field(default=1, metadata={"help": "First epochs, at a constant learning rate."})
    warmup_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the first epochs."})
    optim: str | None = field(default=None, metadata={"help": "Default: the recipe's.", "choices": OPTIMIZERS})
    max_text_passes: int | None = field(
        default=None, metadata={"help": "Evaluations of loss and gradient at most, with lbfgs; default: 100."}
    )
    momentum: float = field(default=0.9, metadata={"help": "Of SGD."})
    weight_decay: float | None = field(default=None, metadata={"help": "Default: the recipe's."})
    label_smoothing_factor: float | None = field(
        default=None, metadata={"help": "Share of a label that all classes get; default: the recipe's."}
    )
    anchor_weight: float | None = field(
        default=None,
        metadata={"help": "How much classes are held near the hand-written prompt's; default: the recipe's."},
    )
    anchor_template: str | None = field(
        default=None, metadata={"help": "That hand-written prompt; default: --zero_shot_template."}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "Of Adam and AdamW."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Of Adam and AdamW."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Of Adam and AdamW."})
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "Images in each process; default: the paper's, 32 for CoOp."}
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Images in each process, in evaluation and through the image tower."}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches to each update."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last incomplete batch of an epoch, where there is a full one."}
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that read images, with image_views=online."}
    )
    feature_dtype: str = field(
        default="auto",
        metadata={
            "help": "Of cached image features; auto: bfloat16 where it is fast.",
            "choices": FEATURE_DTYPES,
        },
    )
    image_views: str = field(
        default="1", metadata={"help": "1: centre crop; N: N random crops an image; online: a fresh crop each step."}
    )
    learn_temperature: bool = field(default=False, metadata={"help": "Also learn CLIP's logit_scale."})
    seed: int = field(default=1, metadata={"help": "Of the images chosen, the context, the order and the crops."})
    bf16: bool = field(default=False, metadata={"help": "Mixed precision in bfloat16."})
    fp16: bool = field(default=False, metadata={"help": "Mixed precision in float16 (GPU)."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to write a checkpoint.", "choices": STRATEGIES}
    )
    save_steps: int = field(default=500, metadata={"help": "Updates between checkpoints, with save_strategy=steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    eval_strategy: str = field(
        default="no", metadata={"help": "When to measure validation accuracy.", "choices": ("no", "epoch")}
    )
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "Keep the epoch with the highest validation accuracy, not the last."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "End after so many epochs without a higher validation accuracy."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint folder, or True for the newest in output_dir."}
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: trackio, tensorboard, wandb, …; none."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Plain lines instead of the progress bar."})
    push_to_hub: bool = field(default=False, metadata={"help": "Push the trained prompt to the Hub."})
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name; default: output_dir's name."})
    hub_token: str | None = field(default=None, metadata={"help": "Default: the token of `hf auth login`."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Make the repository private."})

    def __post_init__(self) -> None:
        if isinstance(self.report_to, str):
            self.report_to = [self.report_to]
        self.output_dir = os.path.expanduser(self.output_dir)
        self.image_views = str(self.image_views)
        for option in fields(self):
            choices, value = option.metadata.get("choices"), getattr(self, option.name)
            if choices and value not in (option.default, *choices):
                raise ValueError(f"{option.name} must be one of {', '.join(choices)}, got {value!r}")
        check_templates(self.anchor_template or DEFAULT_TEMPLATE)
        for name in (
            "num_train_epochs",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "save_steps",
            "save_total_limit",
            "early_stopping_patience",
        ):
            self._check_at_least(name, 1)
        for name in (
            *("learning_rate", "warmup_epochs", "warmup_learning_rate", "momentum", "weight_decay", "anchor_weight"),
            *("label_smoothing_factor", "adam_epsilon", "adam_beta1", "adam_beta2", "dataloader_num_workers", "seed"),
        ):
            self._check_at_least(name, 0)
        self._check_at_least("max_text_passes", 2)
        if (self.label_smoothing_factor or 0) >= 1:
            raise ValueError(f"label_smoothing_factor must be below 1, got {self.label_smoothing_factor!r}")
        if self.image_views != ONLINE and (not self.image_views.isdecimal() or int(self.image_views) < 1):
            raise ValueError(f"image_views must be 1 or more, or {ONLINE!r}, got {self.image_views!r}")
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 are both set: choose one")
        if not self.output_dir:
            raise ValueError("output_dir is empty: say where to write")
        if self.selection and self.eval_strategy == "no":
            raise ValueError(
                f"{next(iter(self.selection))} goes by the validation accuracy: give eval_strategy='epoch'"
            )

    def _check_at_least(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if value is not None and not (isinstance(value, Real) and low <= float(value) < math.inf):
            raise ValueError(f"{name} must be {low} or more, got {value!r}")

    @property
    def num_views(self) -> int | None:
        """Encoded views of each training image; None with fresh crops each step."""
        return None if self.image_views == ONLINE else int(self.image_views)

    @property
    def mixed_precision(self) -> str:
        """As Accelerate calls it; where nothing is asked for, what `accelerate launch` was told."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else os.environ.get("ACCELERATE_MIXED_PRECISION", "no")

    @property
    def selection(self) -> dict[str, bool | int]:
        """What is asked for of the choices that validation images make."""
        options = {name: getattr(self, name) for name in ("load_best_model_at_end", "early_stopping_patience")}
        return {name: value for name, value in options.items() if value}

    @property
    def trackers(self) -> list[str]:
        """`report_to` without "none"."""
        return [name for name in self.report_to if name != "none"]

    def to_dict(self) -> dict[str, Any]:
        """All fields but the token."""
        return {name: value for name, value in asdict(self).items() if name != "hub_token"}

    def learning_rate_at(self, epoch: int, num_train_epochs: int) -> float:
        """The learning rate throughout an epoch, as published: constant warm-up, then a cosine from its peak.

        `learning_rate / 2 * (1 + cos(pi * (epoch - warmup_epochs) / num_train_epochs))`: the warm-up delays the
        cosine, whose length stays `num_train_epochs`.

        Args:
            epoch (`int`): from 0.
            num_train_epochs (`int`): of the run.
        """
        assert self.learning_rate is not None
        if epoch < self.warmup_epochs:
            return self.warmup_learning_rate
        progress = (epoch - self.warmup_epochs) / num_train_epochs
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
