"""Files are written whole or not at all."""

from __future__ import annotations

import glob
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout
from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE, SCRATCH = ".lock", ".hf-coop-part"
_locked: set[str] = set()  # by this process
PROBE_BYTES = 2**20  # more than an adapter, its card, metrics and pictures take


@contextmanager
def staged_folder(folder: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary folder beside `folder`; on success its files are moved into `folder`, each in one step.

    Raises:
        ValueError: `folder` is a file.
        OSError: a file cannot be written.
    """
    target = Path(folder)
    if target.is_file():
        raise ValueError(f"cannot save to {str(folder)!r}: it is a file, not a folder")
    with naming_place(target), scratch_folder(target) as staging:
        yield str(staging)
        open_to_readers(staging)
        target.mkdir(exist_ok=True)
        with _alone_in(target):
            for path in sorted(staging.rglob("*")):
                place = target / path.relative_to(staging)
                if path.is_dir():
                    place.mkdir(parents=True, exist_ok=True)
                else:
                    os.replace(path, place)


@contextmanager
def scratch_folder(place: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `place`; those that killed processes left there are deleted."""
    target = Path(place)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}-*{SCRATCH}"):
        with suppress(OSError), _alone_in(left, wait=False):  # who lives holds its own
            shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as locks:
        folder = None
        while folder is None or not folder.exists():  # another process has deleted it before it was locked
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=SCRATCH, dir=target.parent))
            with suppress(FileNotFoundError):
                locks.enter_context(_alone_in(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write in a [`scratch_folder`], which takes the place of `path` in one step once the block is done."""
    place = Path(path)
    with scratch_folder(place) as folder:
        yield folder / place.name
        os.replace(folder / place.name, place)


@contextmanager
def naming_place(place: str | os.PathLike[str]) -> Iterator[None]:
    """Say in an error where it was that could not be written.

    Raises:
        OSError: the disk is full, say.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter is what safetensors says of a full disk
        raise OSError(f"cannot write to {str(place)!r}: {error}; make room there, or save elsewhere") from error


@contextmanager
def locked_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made if needed, and removed again where nothing was written.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be written to.
    """
    path = os.path.realpath(folder)
    if path in _locked:
        yield
        return
    is_new = not os.path.exists(path)
    lock = FileLock(os.path.join(path, LOCK_FILE), timeout=0)
    try:
        os.makedirs(path, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{str(folder)!r} is in use: another run writes to it now; wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise OSError(f"cannot write to {str(folder)!r}: {error}; choose another folder") from error
    _locked.add(path)
    try:
        yield
    finally:
        _locked.discard(path)
        os.unlink(lock.lock_file)  # while it is held, so that nobody else's file is taken away
        lock.release()
        if is_new:
            with suppress(OSError):  # there is something in it
                os.rmdir(path)


@contextmanager
def _alone_in(folder: Path, wait: bool = True) -> Iterator[None]:
    """Keep other processes out that lock `folder` too; with `wait=False` an `OSError` where one does.

    The folder itself is locked, so no lock file is left, not even by a process that is killed.
    """
    if fcntl is None:
        if not wait:
            raise OSError("it cannot be told whether another process holds it")
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if wait:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def open_to_readers(folder: Path) -> None:
    """Give all files the mode that the umask gives to new ones: safetensors lets nobody but their owner read them."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder, and raise `OSError` now where files could not be written there after long work."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise OSError(
            f"cannot write to {str(folder)!r}: {error}; make room there, or choose another folder"
        ) from error


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file that takes its name in one step when the block is done. An empty one is written first, in a folder
    that is made if needed, so that a place that cannot be written to costs no work.

    Raises:
        OSError: it cannot be written; what was there before is whole.
    """
    place = Path(path)
    staging = place.with_name(f".{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text("")
    except OSError as error:
        raise OSError(f"cannot write {str(path)!r}: {error}; choose another place") from error
    try:
        text = io.StringIO()
        yield text
        with naming_place(place):
            staging.write_text(text.getvalue(), encoding="utf-8")
            os.replace(staging, place)
    finally:
        staging.unlink(missing_ok=True)
