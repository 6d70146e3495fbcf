"""What a run says of its processes."""

from __future__ import annotations

import os

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from test_trainer import arguments, embeds_dataset, make_model

from hf_coop import CoOpTrainer

LAUNCH = ["--cpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    """Give this process the environment that `accelerate launch --num_processes N` gives to its only child."""

    def launched(*options: str) -> None:
        args, *_ = _validate_launch_command(launch_command_parser().parse_args([*LAUNCH, *options, "train.py"]))
        _, environment = prepare_simple_launcher_cmd_env(args)
        for name in environment.keys() - os.environ.keys():
            monkeypatch.setenv(name, environment[name])

    return launched


def test_global_batch(tmp_path, capsys):
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "save_strategy": "no"}
    CoOpTrainer(make_model(), arguments(tmp_path, **options), embeds_dataset()).train()
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == "1 process on cpu: global batch 8 (1 x 4 x 2 accumulated)"


@pytest.mark.parametrize(("number", "warned"), [("2", True), ("1", False)])
def test_one_process_where_two_were_asked_for(launched, tmp_path, caplog, number, warned):
    launched("--num_processes", number)
    args = arguments(tmp_path, num_train_epochs=1, save_strategy="no")
    CoOpTrainer(make_model(), args, embeds_dataset()).train()
    assert ("asked for several processes, but this one runs alone" in caplog.text) == warned
