"""Version folders on disk: validated when they are read, written atomically, and never rewritten while sound.

A sound version stays as it is, under its readers; each file of a damaged one is replaced by a rename. The newest
version of a name is the one whose manifest has the latest time of modification: registering it again sets that time,
and changes nothing else.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from fedray.files import flush, flush_all, moved, staged, sweep
from fedray.registry.manifest import Manifest, is_version, version_folder
from fedray.types import FedrayError

MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
_ATTEMPTS = 5  # to write a version that another process deletes meanwhile


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of a version folder, which has weights too. Raises FedrayError."""
    path = folder / MANIFEST
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
        if (manifest.name, manifest.hash) != (folder.parent.name, folder.name):
            raise FedrayError(f"it is that of {manifest.name} {manifest.hash}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)[:200]
        raise FedrayError(f"{path} cannot be read ({reason}); delete the folder or train again") from error
    if not (folder / WEIGHTS).is_file():
        raise FedrayError(f"{folder / WEIGHTS} cannot be read (it is missing); delete the folder or train again")
    return manifest


def check_weights(manifest: Manifest, folder: Path) -> None:
    """Compare the weights of a version with the hash in its manifest. Raises FedrayError."""
    with _weights(folder) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _compare(digest, manifest, folder)


def read_weights(manifest: Manifest, folder: Path) -> bytes:
    """Read the weights of a version, if they have the hash in its manifest. Raises FedrayError."""
    with _weights(folder) as file:
        blob = file.read()
    _compare(hashlib.sha256(blob).hexdigest(), manifest, folder)
    return blob


def write_version(root: Path, manifest: Manifest, blob: bytes) -> Path:
    """Write a version below a root, as the newest of its name; blob: its model.safetensors.

    The versions that are there stay as they are, whatever happens. Raises FedrayError where the weights are not
    those of the manifest, and OSError where it cannot be written.
    """
    folder, text = version_folder(root, manifest.name, manifest.hash), manifest.to_json()
    if hashlib.sha256(blob).hexdigest() != manifest.weights:
        raise FedrayError(f"{manifest.name} {manifest.hash} has other weights than its manifest says; take it anew")
    for attempt in range(_ATTEMPTS):
        try:
            if _is_sound(folder):
                _make_newest(folder / MANIFEST, folder)
                sweep(folder.parent)
            else:
                _put(folder, text, blob)
            break
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1:
                raise
    return folder


def version_age(folder: Path) -> tuple[int, str]:
    """Make the sort key of a name's versions, the newest first."""
    return -_written(folder / MANIFEST), folder.name


def is_gone(folder: Path) -> bool:
    """Check whether a version has been deleted."""
    try:
        folder.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _put(folder: Path, text: str, blob: bytes) -> None:
    with staged(folder.parent) as new:
        (new / WEIGHTS).write_bytes(blob)
        (new / MANIFEST).write_text(text, encoding="utf-8")
        _make_newest(new / MANIFEST, folder)
        flush_all(new)
        if not moved(new, folder):  # a damaged one is there, or somebody else's of the same content
            for name in (WEIGHTS, MANIFEST):
                (new / name).replace(folder / name)
            flush(folder)


def _make_newest(manifest: Path, folder: Path) -> None:
    """Set the time of a version's manifest, wherever that lies now, past those of the other versions of its name."""
    others = [other for other in folder.parent.iterdir() if is_version(other) and other != folder]
    latest = max((_written(other / MANIFEST) for other in others), default=0)
    if manifest.stat().st_mtime_ns <= latest:  # a clock may tick slowly, or differ from another machine's
        now = max(time.time_ns(), latest + 1)
        os.utime(manifest, ns=(now, now))


def _is_sound(folder: Path) -> bool:
    try:
        check_weights(read_manifest(folder), folder)
    except FedrayError:
        return False
    return True


def _written(manifest: Path) -> int:
    try:
        return manifest.stat().st_mtime_ns
    except OSError:
        return 0


@contextmanager
def _weights(folder: Path) -> Iterator[BufferedReader]:
    path = folder / WEIGHTS
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise FedrayError(f"{path} cannot be read ({error.strerror}); delete the folder or train again") from error


def _compare(digest: str, manifest: Manifest, folder: Path) -> None:
    if digest != manifest.weights:
        raise FedrayError(
            f"{folder / WEIGHTS} is damaged: its hash is not the one in its manifest; delete the folder or reinstall"
        )
