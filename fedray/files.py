"""Write files and folders atomically and durably.

What is being written is staged beside its final place in a folder `.new-...`, what is being replaced in `.old-...`. A
writer holds a lock on its folder, which ends with the process: what a kill has left is unlocked, and the next writer
there removes it or rolls it back.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from itertools import count
from pathlib import Path

_NEW, _OLD = ".new-", ".old-"


def flush(path: Path) -> None:
    """Fsync a file, or the names of a folder. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def new_folder(path: Path) -> Path:
    """Create a new folder: `path`, or with -2, -3, ... behind its name. Raises OSError."""
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
    """Atomically replace a folder when the block ends: by one rename, or by two where `final` exists, which is removed
    only then.

    Where the block fails or the disk is full, the new folder is removed and `final` stays as it was. Raises OSError.
    """
    with staged(final.parent) as new:
        yield new
        flush_all(new)
        while not moved(new, final):
            with staged(final.parent, _OLD) as old:
                with suppress(FileNotFoundError):  # another writer has moved it away
                    final.rename(old / final.name)
                try:
                    if moved(new, final):
                        break
                except OSError:
                    with suppress(OSError):
                        moved(old / final.name, final)
                    raise


@contextmanager
def staged(parent: Path, prefix: str = _NEW) -> Iterator[Path]:
    """Create a staging folder in `parent`; what is not moved away is removed when the block ends. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with locked(parent, fcntl.LOCK_EX):  # nobody sweeps a folder that has no lock yet
            _sweep(parent)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.enter_context(locked(folder, fcntl.LOCK_SH))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        yield folder


def sweep(parent: Path) -> None:
    """Remove what a kill has left in a folder. Raises OSError."""
    with locked(parent, fcntl.LOCK_EX):
        _sweep(parent)


def flush_all(folder: Path) -> None:
    """Fsync a folder's files and their names. Raises OSError."""
    for path in (*folder.iterdir(), folder):
        flush(path)


def moved(folder: Path, final: Path) -> bool:
    """Rename a folder durably; False where another that is not empty exists. Raises OSError."""
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno in (EEXIST, ENOTEMPTY):
            return False
        raise
    flush(final.parent)
    return True


def _sweep(parent: Path) -> None:
    """Remove what a kill has left, under the folder's lock; what was about to be replaced is rolled back."""
    for left in [path for path in parent.iterdir() if path.name.startswith((_NEW, _OLD))]:
        with suppress(OSError), locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
            if not free:
                continue
            if left.name.startswith(_OLD):
                for replaced in filter(Path.is_dir, left.iterdir()):
                    moved(replaced, parent / replaced.name)
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[bool]:
    """Lock a folder or a file; False where another process holds the lock, or the file system has none."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, how)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
