"""Runs side by side: in processes of this machine by joblib, or on the workers of a dask cluster."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

BACKENDS = ("loky", "dask")
LOOK_EVERY = 1.0  # seconds between two looks at whether the parent lives
CONNECT_SECONDS = 30

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerDied(Exception):
    """What stands in the row of a run whose process died."""


def in_parallel(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    jobs: int = 1,
    backend: str = "loky",
    scheduler: str | None = None,
) -> Iterator[tuple[Task, Result | WorkerDied]]:
    """Each task with what `function` gives for it, in the order in which they end.

    Where a worker dies, the tasks that were with the workers are done again, one at a time and each in a process of
    its own: who dies there, is the cause. The others go on.

    Args:
        function: of one task; both are sent to the workers.
        tasks: what to do.
        jobs (`int`): processes of this machine; 1 is this process itself. Each computes on its share of the cores,
            or on as many threads as `OMP_NUM_THREADS` says.
        backend (`str`): "loky", or "dask", whose workers decide how many.
        scheduler (`str`, *optional*): the address of dask's scheduler.

    Raises:
        ValueError: no such backend, dask is not installed, or its scheduler's address is missing.
        OSError: the scheduler cannot be reached.
    """
    check_backend(jobs, backend, scheduler)
    if backend == "dask":
        yield from _on_cluster(function, tasks, str(scheduler))
    elif jobs > 1:
        yield from _in_processes(function, tasks, jobs)
    else:
        for task in tasks:
            yield task, function(task)


def check_backend(jobs: int, backend: str, scheduler: str | None) -> None:
    """Raise `ValueError` unless there can be such workers."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    if backend == "dask" and scheduler is None:
        raise ValueError("backend='dask' needs the address of its scheduler: --scheduler tcp://HOST:8786")
    if backend != "dask" and scheduler is not None:
        raise ValueError(f"scheduler={scheduler!r} goes with backend='dask'")


def _in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, Result | WorkerDied]]:
    """With joblib's loky, whose pool breaks when one of its processes dies, without saying whose task it was."""
    left = dict(enumerate(tasks))

    def pool(numbers: Sequence[int]) -> Iterator[tuple[Task, Result]]:
        parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        for number, result in parallel(delayed(_numbered)(function, left[n], n) for n in numbers):
            yield left.pop(number), result

    with parallel_config("loky", initializer=start_worker, initargs=(os.getpid(),)):
        while left:
            try:
                yield from pool(list(left))
            except TerminatedWorkerError:
                for number in list(left)[:jobs]:  # tasks start in order, so these are those that were at work
                    try:
                        yield from pool([number])
                    except TerminatedWorkerError as death:
                        yield left.pop(number), _died(death)


def _numbered(function: Callable[[Task], Result], task: Task, number: int) -> tuple[int, Result]:
    return number, function(task)


def _on_cluster(
    function: Callable[[Task], Result], tasks: Sequence[Task], scheduler: str
) -> Iterator[tuple[Task, Result | WorkerDied]]:
    """With dask's own client: through joblib, the death of a worker is never told, and its task waited for forever."""
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise ValueError("backend='dask' needs dask: pip install 'hf-coop[dask]'") from error
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        raise OSError(f"cannot reach dask's scheduler at {scheduler!r}: {error}") from error
    with client:
        futures = {client.submit(function, task, pure=False): task for task in tasks}
        blamed = []  # by dask, which counts the deaths of workers that a task was sent to
        for future in as_completed(list(futures)):
            task = futures.pop(future)
            if future.status == "finished":
                yield task, future.result()
                continue
            failure = future.exception() if future.status == "error" else f"a run is {future.status}"
            if not isinstance(failure, KilledWorker):
                raise OSError(f"dask at {scheduler!r} cannot work: {failure}; its workers need hf-coop as it is here")
            blamed.append(task)
        for task in blamed:
            try:
                yield task, client.submit(function, task, pure=False).result()
            except KilledWorker as death:
                yield task, _died(death)


def _died(death: Exception) -> WorkerDied:
    return WorkerDied(f"its worker died, of too little memory perhaps: {' '.join(str(death).split())}")


def start_worker(parent: int) -> None:
    """Make this process end when its parent ends, however that may be: nobody would read what it still computes."""
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
