"""The `hf-coop` command.

It lies beside the package, not in it, because importing the package imports PEFT and transformers: `--help` answers
at once, and each command imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Few-shot prompt learning for CLIP: learn, share and use prompts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main() -> None:
    """Few-shot prompt learning for CLIP: learn, share and use prompts."""


@app.command()
def demo(
    shots: Annotated[int, typer.Option(help="Labelled images a class to learn from.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images and of the context.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for adapter, metrics.json and demo.png.")] = Path("demo-output"),
) -> None:
    """Learn a prompt on the embedded images and model, offline, and compare it with hand-written prompts."""
    from hf_coop.demo.run import run_demo

    run_demo(shots, seed, output)


if __name__ == "__main__":
    app()
