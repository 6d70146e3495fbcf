"""The command itself: its groups, its errors, and the options that several of its parts have."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .train_options import TRAIN_OPTIONS

LEARN, USE, SHARE = "Learn", "Use", "Share"  # the groups of commands in --help
_UsageError: Any = typer.BadParameter.__base__  # of click, which newer versions of typer bring with them


class OneLineErrors(TyperGroup):
    """A wrong option or value is told on one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**kwargs, "prog_name": "hf-coop", "standalone_mode": False}))
        except _UsageError as error:
            if type(error).__name__ != "NoArgsIsHelpError":  # which has shown the help
                command = error.ctx.command_path if error.ctx else "hf-coop"
                say(f"error: {error.format_message()} (`{command} --help` lists what there is)", err=True)
            sys.exit(error.exit_code)


class SpacedLists(TyperCommand):
    """A command whose options take several values behind one name, as in `--shots 1 2 4`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current = None  # the option whose values these are
        for argument in args:
            name, given, _ = argument.partition("=")
            if argument.startswith("--"):
                current = name if name in several else None
                spread += [] if current and not given else [argument]
            else:
                spread += [current, argument] if current else [argument]
        return super().parse_args(ctx, spread)


class TrainCommand(TyperCommand):
    """A command that passes its options on to examples/train.py; shells complete their names."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        names = [name for name in TRAIN_OPTIONS if name.startswith(incomplete)] if incomplete.startswith("-") else []
        return [SimpleNamespace(value=name, type="plain", help=None) for name in names]  # click's CompletionItem


app = typer.Typer(
    cls=OneLineErrors,
    help="Few-shot prompt learning for CLIP: learn, share and use prompts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Adapter = Annotated[str, typer.Argument(metavar="REPO_OR_FOLDER", help="Adapter on the Hub or in a folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")]
Token = Annotated[str | None, typer.Option(help="Access token; default: that of `hf auth login`.")]
BaseModel = Annotated[
    str | None, typer.Option("--base_model_name_or_path", help="Another CLIP than the one the adapter records.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data_dir", help="Folder of the sets; default: $HF_COOP_DATA, else one in the cache.")
]


def of_images(name: str, text: str) -> Any:
    """An option that says which images to take."""
    return typer.Option(f"--{name}", help=text, rich_help_panel="Images")


def say(text: str, err: bool = False) -> None:
    """Print `text` on one line, with nothing in it that a terminal would obey."""
    from hf_coop_onnx import one_line

    typer.echo(one_line(text), err=err)


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """What a user can mend is told on one line, without a traceback; nothing where nobody reads on, as with `head`."""
    from hf_coop_onnx import one_line

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        sys.exit(128 + 13)  # as a shell tells of SIGPIPE
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f"error: {one_line(str(error))}")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Imports make a million objects that stay: looking for garbage among them takes a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-coop {version('hf-coop')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Few-shot prompt learning for CLIP: learn, share and use prompts."""
    # PEFT reads a property that transformers has just renamed: nothing that a user of the command could mend.
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
