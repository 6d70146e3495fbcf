"""Folders that belong to one run at a time, and temporary ones."""

from __future__ import annotations

import os

import pytest
from filelock import FileLock

from hf_coop.files import LOCK_FILE, SCRATCH, locked_folder, scratch_folder


def test_another_process_is_kept_out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    another = FileLock(folder / LOCK_FILE)  # not by `locked_folder`, so as another process has it
    with another, pytest.raises(ValueError, match=f"'{folder}' is in use: another run"), locked_folder(folder):
        pass
    with locked_folder(folder), locked_folder(str(folder)):
        assert (folder / LOCK_FILE).exists()
    assert not list(folder.iterdir())


def test_what_a_killed_process_left_is_no_lock(tmp_path):
    (tmp_path / LOCK_FILE).touch()
    with locked_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_new_folder_stays_where_something_was_written(tmp_path):
    with locked_folder(tmp_path / "empty"):
        pass
    with locked_folder(tmp_path / "full"):
        (tmp_path / "full" / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write to"), locked_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize("can_lock", [True, False])  # False as on Windows
def test_a_temporary_folder_that_is_in_use_stays(tmp_path, monkeypatch, can_lock):
    if not can_lock:
        monkeypatch.setattr("hf_coop.files.fcntl", None)
    left = tmp_path / f".out-killed{SCRATCH}"
    left.mkdir()
    with scratch_folder(tmp_path / "out") as first:
        (first / "file").touch()
        with scratch_folder(tmp_path / "out") as second:
            assert first != second
            assert (first / "file").exists()
    assert left.exists() == (not can_lock)  # where it cannot be told who lives, nothing is deleted
    assert not first.exists()
    assert not second.exists()
