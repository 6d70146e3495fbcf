"""Runs side by side: in processes of this machine, and on the workers of a real dask cluster on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from test_experiment import measured

from hf_coop.experiments import Experiment, run_experiment
from hf_coop.experiments.jobs import WorkerDied, in_parallel


def dies_at(number: int) -> Callable[[int], int]:
    """A function that doubles numbers, and whose process is killed at one of them, as when memory runs out."""

    def function(task: int) -> int:
        if task == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * task

    return function


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_own_run_alone():
    found = dict(in_parallel(dies_at(3), range(8), jobs=2))
    assert isinstance(found.pop(3), WorkerDied)
    assert found == {task: 2 * task for task in range(8) if task != 3}


def test_one_job_is_this_process():
    assert dict(in_parallel(lambda task: os.getpid(), range(3))) == dict.fromkeys(range(3), os.getpid())


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    """Even when it is killed: nobody would read what they still compute."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from hf_coop.experiments.jobs import in_parallel\n"
        "def slow(task):\n    print(os.getpid(), flush=True)\n    time.sleep(100)\n"
        "list(in_parallel(slow, [1, 2], jobs=2))\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(works, workers))
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(works, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(works, workers))


def works(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[str]:
    """The address of a dask scheduler with two workers, each a process of its own."""
    pytest.importorskip("distributed")
    from distributed import Client

    folder = tmp_path_factory.mktemp("dask")
    place = folder / "scheduler.json"
    common = ["--scheduler-file", str(place), "--no-dashboard"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    commands = [
        ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common],
        *(["-m", "distributed.cli.dask_worker", "--nthreads", "1", "--local-directory", str(folder), *common],) * 2,
    ]
    with (folder / "log").open("w") as log:
        processes = [
            subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)
            for command in commands
        ]
        try:
            deadline = time.monotonic() + 60
            while not place.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            with Client(scheduler_file=str(place)) as client:
                client.wait_for_workers(2, timeout=60)
                address = client.scheduler.address
            yield address
        finally:
            for process in reversed(processes):
                process.kill()
            for process in processes:
                process.wait()


def same_rows(folder: Path, scheduler: str, **options) -> None:
    """Run it on the cluster and here, and compare the rows."""
    experiments = [
        Experiment(output_dir=str(folder / "dask"), backend="dask", scheduler=scheduler, **options),
        Experiment(output_dir=str(folder / "here"), **options),
    ]
    for experiment in experiments:
        run_experiment(experiment)
    assert measured(folder / "dask") == measured(folder / "here")
    assert all(error is None for _, error, _ in measured(folder / "here").values())


@pytest.mark.slow
def test_a_cluster_gives_the_rows_of_one_process(scheduler, tmp_path):
    methods = ["zero_shot", "linear_probe", "coop"]
    options = {"benchmark": ["demo"], "methods": methods, "shots": [1], "seeds": [1, 2]}
    same_rows(tmp_path, scheduler, protocol="few-shot", training={"max_text_passes": 5}, **options)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_runs_on_a_cluster(scheduler, tmp_path):
    methods = ["zero_shot", "ensemble_7", "ensemble_80", "linear_probe", "coop", "kgcoop"]
    options = {"benchmark": ["demo"], "methods": [*methods, "coop_csc"], "seeds": list(range(1, 6))}
    same_rows(tmp_path, scheduler, protocol="few-shot", training={"max_text_passes": 20}, **options)
    assert len(measured(tmp_path / "dask")) == 103


@pytest.mark.slow
def test_a_cluster_worker_that_dies(scheduler):
    found = dict(in_parallel(dies_at(1), range(4), backend="dask", scheduler=scheduler))
    assert isinstance(found.pop(1), WorkerDied)
    assert found == {0: 0, 2: 4, 3: 6}


def test_no_scheduler_there(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("hf_coop.experiments.jobs.CONNECT_SECONDS", 0.5)
    with pytest.raises(OSError, match=r"cannot reach dask's scheduler at 'tcp://127\.0\.0\.1:9'"):
        list(in_parallel(abs, [1], backend="dask", scheduler="tcp://127.0.0.1:9"))
