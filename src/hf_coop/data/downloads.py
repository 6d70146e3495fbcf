"""The benchmark sets from the Hub: fetched, unpacked with no trust in the archive, checked, and then put in place."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from ..errors import whole_message
from .archives import unpack
from .benchmarks import (
    IMAGE_SETS,
    Benchmark,
    ImageSet,
    data_folder,
    find_image_set,
    how_to_get,
    load_benchmark,
    missing_part,
    published_classnames,
    read_image_set,
)

logger = logging.getLogger(__name__)

ZIP_REPO, TAR_OWNER = "zhengli97/prompt_learning_dataset", "koorye"
SHA256 = re.compile("[0-9a-f]{64}")


class Archive(NamedTuple):
    """A file on the Hub that holds a set."""

    repo_id: str
    repo_type: str
    filename: str


def archives_of(image_set: ImageSet) -> list[Archive]:
    """Where a set is on the Hub, in the order in which the places are tried; nowhere for ImageNet itself."""
    if not image_set.tar_repo:
        return []
    return [
        Archive(ZIP_REPO, "model", image_set.zip_name or f"{image_set.folder}.zip"),
        Archive(f"{TAR_OWNER}/{image_set.tar_repo}", "dataset", f"{image_set.folder}.tar.gz"),
    ]


def download_benchmark(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, token: str | bool | None = None
) -> Benchmark:
    """Fetch a set from the Hub into the data folder, unless it is there.

    The archive stays in `<data_dir>/.downloads` until the set is in place, and an interrupted download goes on where
    it stopped. So a set takes about twice its size while it is unpacked. Where one source fails, the next is tried.

    Args:
        name (`str`): of the set.
        data_dir: where the sets are; see [`data_folder`].
        token: of the Hub.

    Returns:
        The set as [`load_benchmark`] reads it.

    Raises:
        ValueError: no such set; it is not on the Hub (ImageNet); or a folder of its name is there but is not the set.
        OSError: no source could be reached, or none held the set; or the disk is full.
    """
    image_set, root = find_image_set(name), data_folder(data_dir)
    place = root / image_set.folder
    if not place.exists() and not archives_of(image_set):
        raise ValueError(f"{name} is not on the Hub. {how_to_get(name)}")
    downloads = root / ".downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    with FileLock(downloads / f"{image_set.folder}.lock"):
        if not place.exists():
            _install_from_any(name, archives_of(image_set), place, downloads, token)
    try:
        return load_benchmark(name, root)
    except ValueError as error:
        raise ValueError(f"{str(place)!r} is there already, but {error}; move it away to fetch it anew") from error


def _install_from_any(name: str, archives: list[Archive], place: Path, downloads: Path, token: Any) -> None:
    failures = []
    for archive in archives:
        try:
            return _install(name, archive, place, downloads, token)
        except Exception as error:  # of the Hub, the connection, the archive
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise OSError(f"no room for {name} in {str(downloads)!r}: {error}") from error
            failures.append(f"{archive.repo_id}, {archive.filename}: {whole_message(error)}")
    raise OSError(f"cannot get {name} from the Hub. {'; '.join(failures)}")


def _install(name: str, archive: Archive, place: Path, downloads: Path, token: Any) -> None:
    path = _fetch(archive, downloads, token)
    unpacked = downloads / f"{place.name}.unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
    try:
        unpack(path, unpacked)
        found = _find_root(unpacked, name)
        strange = {*read_image_set(name, found).classnames} - {*published_classnames(name)}
        if strange:
            logger.warning("%s: class names that the published splits do not have: %s", name, sorted(strange)[:10])
        os.replace(found, place)
        path.unlink()
    except ValueError:
        path.unlink()  # the next download would take it for complete
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _fetch(archive: Archive, downloads: Path, token: Any) -> Path:
    """The archive, fetched as `hf_hub_download` does, which starts anew in each process, but from where it stopped."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path = downloads / archive.filename
    if path.exists():
        return path
    url = hf_hub_url(archive.repo_id, archive.filename, repo_type=archive.repo_type)
    found = get_hf_file_metadata(url, token=token)
    part = downloads / f"{path.name}.{found.etag}.part"  # the etag, so that another version is not gone on with
    with part.open("ab") as file:
        done = file.tell()
        http_get(url, file, resume_size=done, headers=build_hf_headers(token=token), expected_size=found.size)
    with part.open("rb") as file:  # large files have their SHA-256 for an etag
        if SHA256.fullmatch(found.etag or "") and hashlib.file_digest(file, "sha256").hexdigest() != found.etag:
            part.unlink()
            raise ValueError("what was fetched is damaged: its SHA-256 is not the one on the Hub; try again")
    return part.rename(path)


def _find_root(unpacked: Path, name: str) -> Path:
    """The folder in an archive that is the set, whatever it is called there."""
    for folder in (unpacked, *sorted(unpacked.glob("*")), *sorted(unpacked.glob("*/*"))):
        if missing_part(name, folder) is None:
            return folder
    image_set = IMAGE_SETS[name]
    raise ValueError(f"no folder in it holds both {image_set.images!r} and {image_set.labels!r}")
