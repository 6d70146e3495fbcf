"""Options of scripts: what `--help` shows, configuration files, and mistakes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import yaml

from hf_coop import CoOpTrainingArguments
from hf_coop.training.options import OptionParser, run_script, write_config
from hf_coop.tuners import make_prompt_arguments


@dataclass
class Extra:
    option_groups: ClassVar = {"seeds": "several runs"}
    seeds: list[int] | None = field(default=None, metadata={"help": "One run a seed."})
    folder: str = field(default="here", metadata={"help": "Where."})


KINDS = (Extra, make_prompt_arguments(), CoOpTrainingArguments)


def parser(**options) -> OptionParser:
    return OptionParser(KINDS, prog="hf-coop train", **options)


def options_of(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.startswith("  --")]


class TestHelp:
    def test_groups(self):
        text = parser().format_help()
        groups = ("several runs:", "prompt:", "output:", "recipe and optimizer:", "batches and views:", "machine:")
        places = [text.index(f"\n{title}\n") for title in groups]
        assert places == sorted(places)
        assert text.index("recipe and optimizer:") < text.index("--adam_beta1") < text.index("batches and views:")

    def test_one_spelling_each_and_the_other_is_taken(self):
        names = options_of(parser().format_help())
        assert len(names) == len(set(names)) > 40
        assert not [name for name in names if "-" in name.removeprefix("--")]
        *_, args = parser().parse(["--learning-rate", "0.5"])
        assert args.learning_rate == 0.5

    def test_choices_defaults_and_its_own_name(self):
        text = " ".join(parser().format_help().split())
        assert text.startswith("usage: hf-coop train [options]")
        assert "--optim {sgd,adam,adamw,lbfgs}" in text
        assert re.search(r"--method {(?=.*\bcoop\b)[a-z,]+}", text)
        assert "--class_token_position {end,middle,front}" in text
        assert "--output_dir text" in text
        assert "(default: prompt-output)" in text
        assert "image_views=online. (default: 0)" in text
        assert "--no_dataloader_drop_last The opposite." in text
        assert "default: None" not in text

    def test_options_that_mean_nothing_are_no_options(self):
        lacking = parser(without=("seed", "method"))
        assert not {"--seed", "--method"} & set(options_of(lacking.format_help()))
        *_, args = lacking.parse([])
        assert args.seed == 1


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--optim", "sdg"], "argument --optim: invalid choice: 'sdg' (choose from "),
            (["--num_train_epoch", "3"], "unknown option '--num_train_epoch': did you mean --num_train_epochs?"),
            (["--n-ctxx=3"], "unknown option '--n-ctxx=3': did you mean --n_ctx?"),
            (["surplus"], "unknown option 'surplus'"),
            (["--num_train_epochs", "many"], "argument --num_train_epochs: invalid int value: 'many'"),
        ],
    )
    def test_one_line(self, capsys, arguments, message):
        with pytest.raises(SystemExit) as stop:
            parser().parse(arguments)
        told = capsys.readouterr().err
        assert stop.value.code == 2
        assert told.startswith("error: ")
        assert message in told
        assert told.count("\n") == 1
        assert "`hf-coop train --help`" in told

    def test_a_script_ends_with_one_line(self, monkeypatch, tmp_path):
        monkeypatch.setattr("sys.argv", ["train.py", "--config", str(tmp_path / "run.yaml")])
        with pytest.raises(SystemExit, match=r"error: cannot read the configuration .*run\.yaml"):
            run_script(lambda *_: None, *KINDS, description=None)


class TestConfig:
    def parse(self, tmp_path, content, *arguments: str):
        path = tmp_path / "run.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return parser().parse(["--config", str(path), *arguments])

    def test_values_of_all_kinds(self, tmp_path):
        content = "seeds: [1, 2]\nlearning_rate: 1e-3\nsave_total_limit: null\nbf16: true\nctx_init: a photo of a\n"
        content += (
            "image_views: 10\nreport_to: tensorboard\ndataloader_drop_last: no\nmomentum: 0\nsave_strategy: no\n"
        )
        extra, prompt, args = self.parse(tmp_path, content)
        assert extra.seeds == [1, 2]
        assert args.learning_rate == 0.001  # a string to YAML 1.1
        assert (args.save_total_limit, args.bf16, args.dataloader_drop_last) == (None, True, False)
        assert (args.image_views, args.report_to, args.momentum) == ("10", ["tensorboard"], 0)
        assert args.save_strategy == "no"  # false to YAML 1.1
        assert prompt.ctx_init == "a photo of a"

    def test_the_command_line_wins(self, tmp_path):
        content = {"seeds": [1, 2], "optim": "adam", "bf16": True, "dataloader_drop_last": False}
        extra, _, args = self.parse(tmp_path, content, "--seeds", "7", "--optim=sgd", "--bf16", "False")
        assert (extra.seeds, args.optim, args.bf16, args.dataloader_drop_last) == ([7], "sgd", False, False)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("n_shots: 4", "unknown option 'n_shots'"),
            ("learning-rate: 1", "unknown option 'learning-rate': did you mean learning_rate?"),
            ("optim: [sgd, adam]", r"optim=\['sgd', 'adam'\], which is no value"),
            ("optim: {name: sgd}", "optim={'name': 'sgd'}, which is no value"),
            ("output_dir: null", "output_dir=None, which is no value"),
            ("seeds: []", r"seeds=\[\], which is no value"),
            ("- optim", "must hold options"),
            ("a: [", "cannot read the configuration"),
            ("config: other.yaml", "unknown option 'config'"),
        ],
    )
    def test_mistakes_are_told(self, tmp_path, content, message):
        with pytest.raises(ValueError, match=message):
            self.parse(tmp_path, content)

    def test_a_wrong_value_is_refused_as_on_the_command_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            self.parse(tmp_path, "num_train_epochs: 2.5")
        assert "argument --num_train_epochs" in capsys.readouterr().err

    def test_what_is_written_is_read_again(self, tmp_path):
        line = "--seeds 3 4 --n_ctx 4 --learning_rate 1e-05 --folder=-x --hub_token secret --report_to none"
        line += " --overwrite_output_dir --resume_from_checkpoint True"
        given = parser().parse([*line.split(), "--ctx_init", "ein Maß: #1"])
        write_config(tmp_path / "run.yaml", *given)
        text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
        assert "secret" not in text
        read = parser().parse(["--config", str(tmp_path / "run.yaml")])
        assert read[:2] == given[:2]
        assert {**vars(read[2]), "hub_token": "secret"} == {
            **vars(given[2]),
            "overwrite_output_dir": False,
            "resume_from_checkpoint": None,
        }


def test_the_output_folder_may_begin_at_home(monkeypatch):
    """`--output_dir=~/x` comes as it is written; shells expand `~` at the beginning of a word alone."""
    monkeypatch.setenv("HOME", "/home/somebody")
    args = parser().parse_args_into_dataclasses(["--output_dir=~/runs"])[2]
    assert args.output_dir == "/home/somebody/runs"
