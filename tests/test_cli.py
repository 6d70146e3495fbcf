"""The `hf-coop` command itself: help, version, completion, and mistakes; nothing here needs torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from hf_coop.version import __version__


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As the installed script calls it."""
    code = "import sys; from hf_coop_cli import app; sys.argv[0] = 'hf-coop'; sys.exit(app())"
    variables = {**os.environ, "COLUMNS": "100", **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)


def test_commands_are_in_groups():
    text = run("--help").stdout
    _, *panels = re.split(r"╭─ (?=\w)", text)
    found = {panel.split()[0]: re.findall(r"^│ ([a-z-]+) ", panel, re.MULTILINE) for panel in panels}
    assert found["Learn"] == ["demo", "train", "experiment", "base-to-new", "results", "data", "cache"]
    assert found["Use"] == ["evaluate", "predict", "explain", "info", "app"]
    assert found["Share"] == ["push", "convert", "export"]


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"hf-coop {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predit"], "No such command 'predit'"),
        (["predict", "--topk", "3", "a", "b"], r"No such option:? '?--topk"),
        (["predict", "a", "b", "--top_k", "0"], "Invalid value for '--top_k': "),
        (["predict", "a", "b", "--top_k", "many"], "Invalid value for '--top_k': "),
        (["predict", "a", "b", "--output_format", "xml"], "'text', 'json', 'csv'"),
        (["predict", "a"], r"(?i)Missing argument 'images(\.\.\.)?'"),
        (["data", "fetch"], "No such command 'fetch'"),
    ],
)
def test_a_mistake_is_told_on_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert re.search(message, done.stderr)  # Typer's words, which differ by its version
    assert done.stderr.count("\n") == 1
    assert "`hf-coop" in done.stderr


def test_no_command_shows_the_help():
    done = run()
    assert "base-to-new" in done.stdout
    assert "error" not in done.stdout + done.stderr


def complete(words: str, shell: str = "bash") -> list[str]:
    """What the shell offers for the last word."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_TYPER_COMPLETE_ARGS": words}
    return run(_HF_COOP_COMPLETE=f"complete_{shell}", **asked).stdout.split()


def test_shells_complete_commands_and_options():
    assert complete("hf-coop pre") == ["predict"]
    assert complete("hf-coop evaluate --test_") == ["--test_dir", "--test_split"]
    assert "complete" in run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout


def test_shells_complete_the_options_of_train():
    """They are those of its help (tests/examples/test_train.py), and torch is not imported to know them."""
    assert complete("hf-coop train --test_") == ["--test_dir", "--test_split", "--test_size"]
    assert complete("hf-coop train --n_ctx 4 --train_dir flowers --optim") == ["--optim"]
    assert complete("hf-coop train flow") == []  # files, by the shell itself
    assert '"--test_size"' in " ".join(complete("hf-coop train --test_si", "zsh"))
    code = "import sys; from hf_coop_cli import app, train_options; print({'torch', 'hf_coop'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
