"""Files are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


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
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield str(staging)
        for path in sorted(staging.rglob("*")):
            place = target / path.relative_to(staging)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
    except (OSError, SafetensorError) as error:  # the latter is what safetensors says of a full disk
        raise OSError(f"cannot write to {str(folder)!r}: {error}; make room there, or save elsewhere") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
