"""Files and folders that outlive a power cut, and are there whole or not at all.

What is being written lies beside its final place in a folder `.new-...`, what is being replaced in `.old-...`. Whoever
works in one holds a lock on it, which ends with the process: what a kill has left is unlocked, and the next writer
there removes it or puts it back.
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
    """Write a folder that takes the place of `final` when the block ends: by one rename, or by two where a folder is
    there, which is removed only then.

    Where the block fails or the disk is full, nothing of it is left and `final` stays as it was. Raises OSError.
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
    """Make an empty folder in `parent` to put files into, until they are moved to their place; the rest is removed when
    the block ends. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _locked(parent, fcntl.LOCK_EX):  # nobody sweeps a folder that has no lock yet
            _sweep(parent)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.enter_context(_locked(folder, fcntl.LOCK_SH))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        yield folder


def sweep(parent: Path) -> None:
    """Remove what a kill has left in a folder. Raises OSError."""
    with _locked(parent, fcntl.LOCK_EX):
        _sweep(parent)


def flush_all(folder: Path) -> None:
    """A folder's files, and their names, onto the disk itself. Raises OSError."""
    for path in (*folder.iterdir(), folder):
        flush(path)


def moved(folder: Path, final: Path) -> bool:
    """Rename a folder; False where another that is not empty is there already. Raises OSError."""
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno in (EEXIST, ENOTEMPTY):
            return False
        raise
    flush(final.parent)
    return True


def _sweep(parent: Path) -> None:
    """Under its lock. What a kill was about to replace goes back to its place."""
    for left in [path for path in parent.iterdir() if path.name.startswith((_NEW, _OLD))]:
        with suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
            if not free:
                continue
            if left.name.startswith(_OLD):
                for replaced in filter(Path.is_dir, left.iterdir()):
                    moved(replaced, parent / replaced.name)
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    """Hold a lock on a folder; False where another process has it, or the file system gives none."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, how)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
