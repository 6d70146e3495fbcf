"""Recipes by name: what a run's arguments are where they were left open.

"paper" is what the method's paper did: SGD over mini-batches, CoOp's unless the method's config says otherwise. "fast"
is L-BFGS over the whole few-shot set, starting from words and held near the hand-written prompt the more, the fewer
images there are; `benchmarks/recipes.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..encoding import DEFAULT_TEMPLATE
from ..tuners import PromptConfig
from .arguments import LBFGS, CoOpTrainingArguments

PAPER, FAST = "paper", "fast"
PAPER_ARGUMENTS = {
    "optim": "sgd",
    "learning_rate": 0.002,
    "per_device_train_batch_size": 32,
    "weight_decay": 5e-4,
    "label_smoothing_factor": 0.0,
    "anchor_weight": 0.0,
}
LBFGS_ARGUMENTS = {"max_text_passes": 100}
STEP_ARGUMENTS = (  # of optimizers that take many steps; they mean nothing to L-BFGS
    *("num_train_epochs", "learning_rate", "per_device_train_batch_size", "warmup_epochs", "warmup_learning_rate"),
    *("momentum", "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "dataloader_drop_last"),
)
BOTH_ARGUMENTS = (
    *("recipe", "optim", "weight_decay", "label_smoothing_factor", "anchor_weight", "anchor_template"),
    *("image_views", "feature_dtype", "seed"),
)


def recipe_name(args: CoOpTrainingArguments, config: PromptConfig | type[PromptConfig]) -> str:
    """The recipe that `args` ask for: by its name, else "fast" unless they or the method ask for steps.

    Raises:
        ValueError: the method has no such recipe.
    """
    has_fast = config.fast_recipe(1) is not None
    if args.recipe is None:
        asks_for_steps = args.optim not in (None, LBFGS) or _given_step_arguments(args) or args.num_views is None
        return FAST if has_fast and not asks_for_steps else PAPER
    if args.recipe == FAST and not has_fast:
        raise ValueError(f"recipe='fast' does not go with {config.label}: {config.no_fast_recipe}; use recipe='paper'")
    return args.recipe


def fill_in(
    args: CoOpTrainingArguments, config: PromptConfig | type[PromptConfig], num_shots: int
) -> CoOpTrainingArguments:
    """`args` with all that was left open filled in by the recipe. What was given stays.

    Args:
        args ([`CoOpTrainingArguments`]): as given.
        config ([`PromptConfig`]): of the method, or its class.
        num_shots (`int`): training images of the largest class.

    Raises:
        ValueError: the method has no such recipe, or something was given that L-BFGS has no use for.
    """
    name, shots = recipe_name(args, config), max(1, num_shots)
    recipe: dict[str, Any] = {**PAPER_ARGUMENTS, **config.default_recipe(shots)}
    if name == FAST:
        recipe |= {"weight_decay": 0.0, **(config.fast_recipe(shots) or {})}
    if (args.optim or recipe["optim"]) == LBFGS:
        check_lbfgs(args, config)
        recipe = {key: value for key, value in recipe.items() if key not in STEP_ARGUMENTS} | LBFGS_ARGUMENTS
    elif args.max_text_passes is not None:
        raise ValueError(f"max_text_passes={args.max_text_passes} is of optim='lbfgs': give num_train_epochs instead")
    if args.anchor_weight and config.depends_on_image:
        raise ValueError(
            f"anchor_weight={args.anchor_weight} holds class embeddings that all images share, and those of "
            f"{config.label} depend on the image: leave it out"
        )
    left_open = {key: value for key, value in recipe.items() if getattr(args, key) is None}
    return replace(args, **{"anchor_template": args.anchor_template or DEFAULT_TEMPLATE, **left_open, "recipe": name})


def check_lbfgs(args: CoOpTrainingArguments, config: PromptConfig | type[PromptConfig]) -> None:
    """Raise `ValueError` where L-BFGS cannot do what was asked for."""
    if config.fast_recipe(1) is None:
        raise ValueError(f"optim='lbfgs' does not go with {config.label}: {config.no_fast_recipe}; use optim='sgd'")
    other = "recipe='paper'" if args.optim is None else "optim='sgd'"
    if args.num_views is None:
        raise ValueError(
            "optim='lbfgs' needs the same loss at every evaluation, which image_views='online' does not give: use "
            f"image_views=10, say, or {other}"
        )
    if args.mixed_precision == "fp16":
        raise ValueError("optim='lbfgs' has no loss scale, which fp16 needs: use bf16 or full precision")
    if given := _given_step_arguments(args):
        name, value = next(iter(given.items()))
        raise ValueError(
            f"{name}={value!r} means nothing to optim='lbfgs', whose every evaluation takes all images: leave it out "
            f"(max_text_passes bounds the evaluations), or use {other}"
        )


def _given_step_arguments(args: CoOpTrainingArguments) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(args)}
    return {name: getattr(args, name) for name in STEP_ARGUMENTS if getattr(args, name) != defaults[name]}


def decisive_arguments(args: CoOpTrainingArguments) -> dict[str, Any]:
    """The arguments of a filled-in run that decide what is learned."""
    own = ("max_text_passes",) if args.optim == LBFGS else STEP_ARGUMENTS
    return {name: getattr(args, name) for name in (*BOTH_ARGUMENTS, *own, "mixed_precision")}


def starting_prompt(
    args: CoOpTrainingArguments, config_class: type[PromptConfig], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a prompt as given, with the context that the recipe starts from where none was asked for.

    Raises:
        ValueError: as [`fill_in`], here before images or a model are loaded.
    """
    if fill_in(args, config_class, num_shots=1).recipe == PAPER or {"n_ctx", "ctx_init"} & options.keys():
        return dict(options)
    return {**options, "ctx_init": config_class.fast_ctx_init}
