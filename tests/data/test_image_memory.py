"""Memory is bounded by one image and a batch of what the tower takes, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LARGE = Path(__file__).parents[2] / "benchmarks" / "image_memory.py"


def run(script: Path, *arguments: object) -> dict[str, int]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_of_five_photos_and_of_odd_shapes(tmp_path):
    """A photo of 12 megapixels takes 46 MiB as Pillow holds it; one of 20 megapixels with transparency 77."""
    growth = run(HERE / "image_memory.py", tmp_path)
    assert growth.keys() == {
        *("wide", "tall", "transparent", "paths", "opened", "files", "column", "features", "crops", "fresh crops")
    }
    assert max(growth.values()) < 200, growth


@pytest.mark.slow
def test_of_128_photos_at_the_size_of_vit_b_16():
    peaks = run(LARGE, "--json")
    assert max(peaks.values()) < 1500, peaks
