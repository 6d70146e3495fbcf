"""Whatever is in a stranger's file: finite scores, or one short line that names the file."""

from __future__ import annotations

import math
import re
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from crafted_files import KINDS, Case, Sound

A_PART = 30  # cases in one test
MAX_GROWTH, MAX_SECONDS, MAX_MESSAGE = 512 * 2**20, 10, 500


class TookTooLongError(BaseException):
    """No `Exception`, so that nothing takes it for a failure of its own."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "part" in metafunc.fixturenames:
        metafunc.parametrize("part", range(math.ceil(metafunc.config.getoption("crafted") / A_PART)))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, images: list) -> Sound:
    return Sound(tmp_path_factory.mktemp("c"), images[0])


@contextmanager
def bounded_time(seconds: int) -> Iterator[None]:
    """Stop what takes longer, wherever it is in Python."""

    def stop(*unused: object) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since `forget_peak`."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def outcome(case: Case) -> str:
    """What is wrong with what came of it; nothing where all is well."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = memory("VmRSS"), time.monotonic()
    wrong = ""
    try:
        with bounded_time(60), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = torch.as_tensor(case.open(), dtype=torch.float64)
        if not scores.isfinite().all():
            wrong = f"scores {scores}"
    except TookTooLongError:
        wrong = "did not end"
    except (ValueError, TypeError, OSError) as error:
        message = str(error)
        if len(message) >= MAX_MESSAGE or not message.isprintable():
            wrong = f"a message of {len(message)} characters: {message[:1000]!r}"
        elif case.folder.name not in message:
            wrong = f"names no file: {message!r}"
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error!s:.300}"
    seconds, growth = time.monotonic() - started, memory("VmHWM") - before
    if seconds > MAX_SECONDS:
        wrong += f" took {seconds:.1f} s"
    if growth > MAX_GROWTH:
        wrong += f" grew by {growth / 2**20:.0f} MiB"
    return wrong


def test_every_outcome_is_scores_or_a_short_line(sound, part, request):
    total = request.config.getoption("crafted")
    wrong = {}
    for number in range(part * A_PART, min(total, (part + 1) * A_PART)):
        case = sound.case(KINDS[number % len(KINDS)], number, seed=0)
        if found := outcome(case):
            wrong[case.what] = found
        shutil.rmtree(case.folder, ignore_errors=True)
    assert not wrong, "\n".join(f"{what}: {found}" for what, found in wrong.items())
