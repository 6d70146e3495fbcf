"""Making a method known to PEFT, and so to everything in hf-coop."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any, get_type_hints

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import PromptConfig, PromptType, option_fields, registered_configs
from .model import PromptModel


def register_method(config_class: type[PromptConfig], tuner_class: type[PromptModel]) -> None:
    """Make a method known to PEFT; [`HFCoOp`], the trainer, the command, the card and the conversion find it there.

    `peft.utils.register_peft_method` takes only names of PEFT's own enumeration; the tables behind it take any.

    Args:
        config_class: its `label` names the method: "CoOp" is COOP in PEFT, and `coop` as `method`.
        tuner_class: names the prompt learner.

    Raises:
        ValueError: the name is taken by another method.
    """
    peft_type = PromptType(config_class.label.upper())
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type, config_class) is not config_class:
        raise ValueError(f"there is a method {peft_type!r} already: choose another label for {config_class}")
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_class
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner_class
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = tuner_class.prefix


def config_class_of(method: str) -> type[PromptConfig]:
    """The config class of a method by its name, "coop", or its `peft_type`, "COOP".

    Raises:
        ValueError: there is no such method; those that there are, are named.
    """
    by_name = {config.label.lower(): config for config in registered_configs()}
    if not isinstance(method, str) or method.lower() not in by_name:
        raise ValueError(f"method must be one of {', '.join(by_name)}, got {method!r:.80}")
    return by_name[method.lower()]


def make_prompt_arguments() -> type:
    """A dataclass of `method` and the options of all registered methods, for `transformers.HfArgumentParser`.

    Each option is None, or False, until it is given: a method has defaults of its own, and refuses options that it
    does not have. `prompt_options` gives those that were given.
    """
    configs = registered_configs()
    options: dict[str, tuple[str, Any, Any]] = {}
    for config in configs:
        hints = get_type_hints(config)
        for name, option in option_fields(config).items():
            owners = [other.label for other in configs if name in option_fields(other)]
            of = "" if len(owners) == len(configs) else f" ({', '.join(owners)})"
            flag = hints[name] is bool
            metadata = {**option.metadata, "help": option.metadata["help"] + of}
            described = field(default=False if flag else None, metadata=metadata)
            options[name] = (name, bool if flag else hints[name] | None, described)
    choices = [config.label.lower() for config in configs]
    method = field(default="coop", metadata={"help": "How the prompt is learned.", "choices": choices})
    groups = {"option_groups": {"method": "prompt"}}  # what `training.options` shows it under
    return make_dataclass("PromptArguments", [("method", str, method), *options.values()], namespace=groups)


def prompt_options(arguments: Any) -> dict[str, Any]:
    """The options of a method that were given, from an instance of `make_prompt_arguments`'s class."""
    given = {name: value for name, value in vars(arguments).items() if value is not None and value is not False}
    return {name: value for name, value in given.items() if name != "method"}
