"""Killed at any moment, two at once, and no room: every file is the old or the new one, and a run ends as ever.

Kills of whole training runs are in `examples/test_train.py` too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FEW = {"save": 6, "both": 3, "cache": 3, "full": 6}  # kills, or rounds, of each
MANY = {"save": 100, "both": 30, "cache": 80, "full": 60, "sgd": 50, "lbfgs": 40}


def run(folder: Path, scenarios: dict[str, int]) -> dict[str, dict[str, int]]:
    words = [str(word) for scenario in scenarios.items() for word in scenario]
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_lost(tmp_path):
    seen = run(tmp_path, FEW)
    assert seen["save"]["kills"]
    assert seen["full"]["refused"]


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_nothing_is_lost_in_many_rounds(tmp_path):
    seen = run(tmp_path, MANY)
    print(seen)
    assert sum(found.get("kills", 0) for found in seen.values()) >= 200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_on_a_full_disk(tmp_path):
    """On a real one of a few megabytes, which is mounted for the process alone."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    (tmp_path / "try").mkdir()
    mount = [*alone, "mount", "-t", "tmpfs", "none", str(tmp_path / "try")]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    command = [*alone, sys.executable, str(Path(__file__).with_name("full_disk.py")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])
