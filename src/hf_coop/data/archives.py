"""Zip and tar archives, unpacked with no trust in them."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import IO

from filelock import FileLock
from tqdm import tqdm

MAX_FILES = 1_000_000  # ImageNet-Sketch has 51,000 and Food-101 101,000
MAX_BYTES = 100 * 2**30  # SUN397, the largest, takes 37 GiB
MAX_FOLDER_BYTES = 20 * 2**30  # of a user's own archive
CACHE_FOLDER = "hf_coop_archives"
CHUNK = 2**20
ARCHIVE_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError),
    *(RuntimeError, KeyError),  # of zipfile about encrypted files, of tarfile about links that lead out
)


def unpacked_folder(archive: Path) -> Path:
    """The folder in a zip or tar archive that holds several things, unpacked into the cache of `datasets` once.

    Raises:
        ValueError: it is no archive, or [`unpack`] refuses it.
        OSError: the disk is full.
    """
    from datasets import config

    if not (zipfile.is_zipfile(archive) or tarfile.is_tarfile(archive)):
        raise ValueError(f"{str(archive)!r} is neither a folder nor a zip or tar archive of one")
    with archive.open("rb") as file:
        place = Path(config.HF_DATASETS_CACHE, CACHE_FOLDER, hashlib.file_digest(file, "sha256").hexdigest())
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            partial = place.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir()
            try:
                unpack(archive, partial, max_bytes=MAX_FOLDER_BYTES)
                shutil.rmtree(partial / "__MACOSX", ignore_errors=True)  # what macOS adds to a zip
                os.replace(partial, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    while len(inside := [path for path in place.iterdir() if not path.name.startswith(".")]) == 1:
        if not inside[0].is_dir() or not any(path.is_dir() for path in inside[0].iterdir()):
            break  # the folder of a single class
        place = inside[0]
    return place


def unpack(archive: Path, target: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
    """The files of a zip or tar archive below `target`, which must hold nothing.

    Only plain files are written: a link becomes a copy of the file in the archive that it points to. Owners, modes and
    times are left out.

    Args:
        archive (`Path`), target (`Path`).
        max_files (`int`), max_bytes (`int`): of all that is unpacked.

    Raises:
        ValueError: it is no archive or damaged; or it holds a path outside, a link that leads out, a device, the same
            file twice, or too much.
        OSError: the disk is full.
    """
    files = written = 0
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        for name, content in tqdm(members(archive), f"unpacking {archive.name}", unit=" files", disable=None):
            parts = PureWindowsPath(name)  # takes both kinds of slashes apart
            if parts.anchor or ".." in parts.parts:
                raise ValueError(f"{name!r:.200} leads out of it")
            if content is None:
                raise ValueError(f"{name!r:.200} is neither a file nor a folder")
            files += 1
            if files > max_files:
                raise ValueError(f"it holds more than {max_files:,} files")
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with content, place.open("xb") as file:
                while chunk := content.read(CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise ValueError(f"it unpacks to more than {max_bytes / 2**30:.3g} GiB")
                    file.write(chunk)
    except FileExistsError as error:
        raise ValueError(f"cannot unpack {str(archive)!r}: it holds {error.filename!r} twice") from error
    except (ValueError, *ARCHIVE_ERRORS) as error:
        raise ValueError(f"cannot unpack {str(archive)!r}: {error}") from error


Members = Iterator[tuple[str, IO[bytes] | None]]  # paths with contents; None: something that is not unpacked


def _zip_members(archive: Path) -> Members:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if not member.is_dir():
                yield member.filename, opened.open(member) if kind in (0, stat.S_IFREG) else None


def _tar_members(archive: Path) -> Members:
    with tarfile.open(archive) as opened:
        for member in opened:
            if not member.isdir():
                plain = member.isreg() or member.islnk() or member.issym()
                yield member.name, opened.extractfile(member) if plain else None
