"""Files and folders that outlive a power cut, and are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path


def flush(path: Path) -> None:
    """Onto the disk itself: a file's bytes, or a folder's names. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def new_folder(path: Path) -> Path:
    """Make a folder that was not there: `path`, or with -2, -3, ... behind its name. Raises OSError."""
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("numbers do not end")


def write_whole(path: Path, text: str, *, private: bool = False) -> None:
    """Atomically replace a text file, whose folder is made. private: only its owner may read it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600 if private else 0o666)
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # gone by now, unless something failed


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """An empty folder to put files into; it takes the place of `final` at one stroke when the block ends.

    Where the block fails or the disk is full, nothing of it is left and `final` stays as it was. Raises OSError.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=final.parent))
    try:
        staging.chmod(0o755)
        yield staging
        for path in (*staging.iterdir(), staging):
            flush(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(staging, final)
        flush(final.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # moved away by now, unless something failed
