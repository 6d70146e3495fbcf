"""What an experiment compares: learned prompts with their variants, and the baselines beside them, all by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..evaluation import BASELINES, Baseline
from ..tuners import PromptConfig, config_class_of
from ..tuners.config import option_fields, registered_configs

#: What may stand behind a prompt learning method, and the options that it stands for: "coop_csc_middle".
VARIANTS: dict[str, dict[str, Any]] = {
    "csc": {"class_specific_context": True},
    "middle": {"class_token_position": "middle"},
    "front": {"class_token_position": "front"},
}


@dataclass(frozen=True)
class Method:
    """A prompt learning method, or a baseline.

    Attributes:
        name (`str`): as on the command line.
        config (*optional*), options: of a prompt: the config class of its method, and what its variants stand for.
        baseline ([`Baseline`], *optional*): the other kind.
    """

    name: str
    config: type[PromptConfig] | None
    options: Mapping[str, Any]
    baseline: Baseline | None

    @property
    def is_prompt(self) -> bool:
        """Whether a prompt is learned."""
        return self.config is not None

    @property
    def learns(self) -> bool:
        """Whether it looks at training images."""
        return self.baseline is None or self.baseline.learns

    @property
    def takes_other_names(self) -> bool:
        """Whether it can be tested on class names that it was not learned with."""
        return not self.learns if self.baseline else not self.options.get("class_specific_context", False)

    @property
    def label(self) -> str:
        """How tables call it: "CoOp csc"."""
        if self.baseline is not None:
            return self.baseline.label
        assert self.config is not None
        return " ".join([self.config.label, *self.name.split("_")[1:]])

    def prompt_options(self, given: Mapping[str, Any], template: str) -> dict[str, Any]:
        """The options of its prompt: those given, its variant's, and the set's hand-written prompt where it has one.

        Raises:
            ValueError: given was something that it does not have, or another value than its variant's.
        """
        assert self.config is not None
        for name, value in self.options.items():
            if given.get(name, value) != value:
                raise ValueError(
                    f"{self.name} is {name}={value!r}, but {name}={given[name]!r} was given: leave it out"
                )
        own = {"template": template} if "template" in option_fields(self.config) else {}
        return {**own, **given, **self.options}


def find_method(name: str) -> Method:
    """The method of that name: a baseline, or a prompt with its variants behind it, as in "coop_csc".

    Raises:
        ValueError: there is none.
    """
    if name in BASELINES:
        return Method(name, None, {}, BASELINES[name])
    prompt, *variants = name.split("_")
    prompts = [config.label.lower() for config in registered_configs()]
    if prompt not in prompts or not {*variants} <= VARIANTS.keys():
        raise ValueError(
            f"no method {name!r}; there are {', '.join(prompts)}, with the variants _{', _'.join(VARIANTS)} "
            f"(coop_csc), and the baselines {', '.join(BASELINES)}"
        )
    options = {option: value for variant in variants for option, value in VARIANTS[variant].items()}
    config = config_class_of(prompt)
    if unknown := options.keys() - option_fields(config).keys():
        raise ValueError(f"no method {name!r}: {config.label} has no {', '.join(sorted(unknown))}")
    return Method(name, config, options, None)
