"""Killed at any moment, two at once, and no room: every file is the old or the new one, and a run ends as ever."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = {"save": 10, "both": 5, "sgd": 4, "lbfgs": 3, "cache": 6, "full": 12}  # kills, or rounds, of each
MANY = {"save": 80, "both": 30, "sgd": 50, "lbfgs": 40, "cache": 60, "full": 60}


def run(scenario: str, folder: Path, rounds: int) -> dict[str, int]:
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), scenario, str(folder), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_lost(scenario, tmp_path):
    assert any(run(scenario, tmp_path, SCENARIOS[scenario]).values())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", MANY)
def test_nothing_is_lost_in_many_rounds(scenario, tmp_path):
    assert any(run(scenario, tmp_path, MANY[scenario]).values())
