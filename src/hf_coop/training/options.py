"""`OptionParser`: dataclasses of options to a command line with configuration files, and back to such a file."""

from __future__ import annotations

import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from accelerate import PartialState
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..escaping import one_line, tell

RUN_CONFIG_FILE = "run.yaml"  # what a run writes beside its results
# Not in such a file: a secret, and what would make a second run go on from the first or delete it.
UNWRITTEN = ("hub_token", "resume_from_checkpoint", "overwrite_output_dir")


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Each option with its choices or type, and its default if it has any."""

    def _format_action_invocation(self, action: Action) -> str:
        names = ", ".join(action.option_strings)
        if action.nargs in (0, "?"):
            return names
        return f"{names} {self._format_args(action, self._get_default_metavar_for_optional(action))}"

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        kind = "{true,false}" if action.type is string_to_bool else getattr(action.type, "__name__", "text")
        return {"str": "text", "int": "number", "float": "number"}.get(kind, kind)

    def _get_help_string(self, action: Action) -> str | None:
        if action.option_strings[0].startswith("--no_"):  # of HfArgumentParser, with the help of its opposite
            return "The opposite."
        told = action.default is None or action.default is False or "efault" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class OptionParser(HfArgumentParser):
    """The options of some dataclasses, each class or its `option_groups` a group in `--help`.

    `--config FILE` reads options from YAML (or JSON), each by its name, as if they stood before all others on the
    command line; so they are checked the same way, and those of the command line win. `null` is the default of an
    option that may be left out.

    Args:
        kinds: dataclasses; a `ClassVar` `option_groups` names groups, each with its first field.
        without (`Collection[str]`): fields that are no options here.
        kwargs: as in `argparse.ArgumentParser`.
    """

    def __init__(self, kinds: Sequence[type], without: Collection[str] = (), **kwargs: Any) -> None:
        self.without, self.optional = without, set[str]()
        program = os.path.basename(sys.argv[0])
        defaults = {"prog": program, "usage": "%(prog)s [options]", "formatter_class": HelpFormatter}
        super().__init__(kinds, **{**defaults, **kwargs, "allow_abbrev": False})
        self.add_argument(
            "--config", metavar="FILE", help=f"Options from a YAML file, such as a run's {RUN_CONFIG_FILE}."
        )

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        titles, hints = getattr(dtype, "option_groups", {}), get_type_hints(dtype)
        group: Any = self
        for option in fields(dtype):
            if option.name in titles:
                group = self.add_argument_group(titles[option.name])
            if option.init and option.name not in self.without:
                option.type = hints[option.name]
                self.optional |= {option.name} if type(None) in get_args(option.type) else set()
                self._parse_dataclass_field(group, option)
        for action in self._actions:  # --a_b is what help and errors show; --a-b is taken too
            action.option_strings = [name for name in action.option_strings if "-" not in name.lstrip("-")]

    def parse(self, arguments: Sequence[str] | None = None) -> tuple[Any, ...]:
        """An instance of each dataclass.

        Args:
            arguments: default: those of the command line.

        Raises:
            SystemExit: an option is unknown or its value wrong, told on one line; or help was asked for.
            ValueError: a configuration file cannot be read, or a dataclass refuses a value.
        """
        first = ArgumentParser(prog=self.prog, add_help=False, allow_abbrev=False)
        first.error = self.error  # type: ignore[method-assign]
        first.add_argument("--config")
        known, rest = first.parse_known_args(arguments)
        read = [] if known.config is None else self._read_config(known.config)
        values, unknown = self.parse_known_args([*read, *rest])
        if unknown:
            self.error(f"unknown option {unknown[0]!r}{_did_you_mean(unknown[0], self._option_string_actions)}")
        found = vars(values)
        return tuple(
            kind(**{f.name: found[f.name] for f in fields(kind) if f.name in found}) for kind in self.dataclass_types
        )

    def _read_config(self, path: str) -> list[str]:
        """The arguments that a configuration file stands for."""
        try:
            content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"cannot read the configuration {path!r}: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(
                f"the configuration {path!r} must hold options, `name: value` a line, got {content!r:.80}"
            )
        actions = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        arguments = []
        for name, value in content.items():
            if name not in actions:
                raise ValueError(
                    f"the configuration {path!r} has the unknown option {name!r}{_did_you_mean(name, actions)}"
                )
            try:
                arguments += self._arguments_of(actions[name], value)
            except ValueError as error:
                raise ValueError(f"the configuration {path!r} has {error}") from error
        return arguments

    def _arguments_of(self, action: Action, value: Any) -> list[str]:
        """What stands on the command line for a value in a configuration file."""
        if value is None and action.dest in self.optional:
            self.set_defaults(**{action.dest: None})
            return []
        if isinstance(value, list) and value and action.nargs == "+":
            return [f"--{action.dest}", *map(str, value)]
        if value is None or isinstance(value, (list, dict)):
            raise ValueError(f"{action.dest}={value!r:.80}, which is no value of an option")
        if isinstance(value, bool) and action.choices:
            value = "yes" if value else "no"  # what YAML takes for true and false
        return [f"--{action.dest}={value}"]

    def error(self, message: str) -> NoReturn:
        tell(f"error: {message} (`{self.prog} --help` lists the options)", sys.stderr)
        sys.exit(2)


def _did_you_mean(name: Any, names: Collection[str]) -> str:
    shown = [other for other in names if "-" not in other.lstrip("-")]
    close = get_close_matches(str(name).split("=")[0], shown, n=1)
    return f": did you mean {close[0]}?" if close else ""


def write_config(path: str | os.PathLike[str], *options: Any, without: Collection[str] = ()) -> None:
    """Write options as a file that `--config` takes, but for a token and what resumes or overwrites a run.

    Args:
        path: the file.
        options: instances of the dataclasses of an [`OptionParser`].
        without (`Collection[str]`): its own.
    """
    kept = [field.name for kind in options for field in fields(kind) if field.init]
    values = {name: value for kind in options for name, value in vars(kind).items() if name in kept}
    content = {name: value for name, value in values.items() if name not in (*UNWRITTEN, *without)}
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def run_script(run: Callable[..., Any], *kinds: type, description: str | None, without: Collection[str] = ()) -> None:
    """Run it with the command line's options; Ctrl-C and errors end in one line.

    Args:
        run (`Callable`): takes an instance of each of `kinds`.
        kinds, without: as in [`OptionParser`].
        description (`str`, *optional*): for `--help`.
    """
    try:
        run(*OptionParser(kinds, without, description=description).parse())
        PartialState().destroy_process_group()
    except KeyboardInterrupt as stop:
        tell(str(stop) or "stopped; to go on, run it again with --resume_from_checkpoint True", sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {one_line(str(error))}")
