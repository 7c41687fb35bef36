"""Where Ray runs: a cluster that is there already, or an embedded one that lives as long as the connection.

`RAY_ADDRESS` (set in every submitted job) or an address of one's own names an existing cluster; without either, fedray
starts one on this machine. One cluster is one trust domain: anyone in it can run code in it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError, RayError

from fedray.runtime import joining
from fedray.types import FedrayError

WARM_BYTES = 64 << 20
SOCKET_BYTES = 107  # the longest path of a socket that Linux takes


@dataclass(frozen=True, slots=True)
class Connection:
    """This process's place in a cluster. owned: `close` leaves it, which ends an embedded one."""

    address: str
    is_embedded: bool
    owned: bool = field(default=True, repr=False)

    def close(self) -> None:
        if self.owned:
            ray.shutdown()


def connect(
    address: str | None = None, *, namespace: str = "fedray", num_cpus: float | None = None, object_store_mb: int = 256
) -> Connection:
    """Join the cluster at `address` or RAY_ADDRESS ("HOST:PORT", "auto"), else start one; "local" always starts one.

    num_cpus and object_store_mb are those of a cluster started here. A process that Ray knows already stays where it
    is. Raises FedrayError within seconds where there is no cluster to join.
    """
    if ray.is_initialized():
        return Connection(_joined_at(), False, owned=False)
    if will_embed(address):
        return _embed(namespace, num_cpus, object_store_mb)
    return _join(address or os.environ["RAY_ADDRESS"], namespace)


def will_embed(address: str | None = None) -> bool:
    """Check whether `connect` would start a cluster of its own. Raises FedrayError where it could not."""
    embeds = not ray.is_initialized() and (address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    if embeds:
        _check_length(_folder())
    return embeds


def _join(address: str, namespace: str) -> Connection:
    if "://" in address:
        raise FedrayError(
            f"cannot join {address}: Ray Client is not supported; give the cluster's HOST:PORT, or run on the cluster "
            f"with `ray job submit`"
        )
    joining.check(address)
    try:
        _init(address, namespace=namespace)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise FedrayError(f"cannot join the Ray cluster at {address} ({_why(error)}); {_remedy(error)}") from error
    return Connection(_joined_at(), False)


def _embed(namespace: str, num_cpus: float | None, object_store_mb: int) -> Connection:
    folder = _private_folder()
    try:
        with _private():
            _init(
                "local",
                namespace=namespace,
                num_cpus=num_cpus,
                object_store_memory=object_store_mb << 20,
                include_dashboard=False,
                _temp_dir=str(folder / "ray"),
                _system_config={"preallocate_plasma_memory": True},
            )
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise FedrayError(f"Ray cannot start on this machine ({_why(error)}); try ray.enabled=false") from error
    # The store's first pages are touched: a cold store slows the first transfers by up to two seconds.
    ray.put(bytes(min(WARM_BYTES, (object_store_mb << 20) // 4)))
    return Connection(_joined_at(), True)


def _init(address: str, **options: Any) -> None:
    """Call ray.init quietly. Ctrl-C waits until it returns: a cluster that is half there leaves processes behind.

    A token mode that Ray turns on for this cluster is not left in the environment for the next one.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    with _held_interrupt() as interrupted:
        try:
            ray.init(address, **options, logging_level=logging.ERROR, log_to_driver=False)
        finally:
            if mode is None:
                os.environ.pop("RAY_AUTH_MODE", None)
    if interrupted:
        ray.shutdown()
        raise KeyboardInterrupt


@contextmanager
def _held_interrupt() -> Iterator[list[int]]:
    """Collect Ctrl-C instead of raising it. Only the main thread is ever interrupted."""
    interrupted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _private() -> Iterator[None]:
    """Keep what Ray writes and opens to this user and this machine.

    Its files (access token, logs, spilled caches) are 0644 by default. All that it opens is bound to loopback, its own
    default on laptops; the environment variable of this switch is read when Ray is imported, which a user's script may
    have done before.
    """
    umask, switch = os.umask(0o077), ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        os.umask(umask)
        ray_constants.ENABLE_RAY_CLUSTER = switch


def _folder() -> Path:
    return joining.system_folder().absolute() / f"fedray-{os.getuid()}"


def _private_folder() -> Path:
    """Make a folder for this user alone: Ray opens its own, with logs and sockets, to all users of a machine.

    Raises FedrayError where there can be none.
    """
    folder = _folder()
    _check_length(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_ours = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
        if is_ours:
            folder.chmod(0o700)
    except OSError as error:
        raise FedrayError(f"cannot make Ray's folder {folder} ({error.strerror}): set RAY_TMPDIR to another") from error
    if not is_ours:
        raise FedrayError(f"Ray's folder {folder} belongs to somebody else: set RAY_TMPDIR to a folder of your own")
    return folder


def _check_length(folder: Path) -> None:
    """Check that Ray can open its sockets in a folder. Raises FedrayError."""
    session = f"session_{'0000-00-00_00-00-00_000000'}_{os.getpid()}"
    longest = folder / "ray" / session / "sockets" / "plasma_store"
    over = len(os.fsencode(longest)) - SOCKET_BYTES
    if over > 0:
        raise FedrayError(
            f"Ray cannot open sockets in {folder}, whose path is {over} bytes too long: set RAY_TMPDIR to a shorter "
            "folder, as in RAY_TMPDIR=/tmp"
        )


def _joined_at() -> str:
    return ray.get_runtime_context().gcs_address


def _why(error: Exception) -> str:
    """Shorten Ray's message to its first sentence, or a mismatch of versions to one line."""
    text = str(error).strip()
    text = " ".join(text.split()) if text.startswith("Version mismatch") else text.split("\n", 1)[0]
    return text.split(". ", 1)[0].rstrip(".")


def _remedy(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return joining.TOKEN
    if "Version mismatch" in str(error):
        return "install the cluster's versions here, or choose another cluster"
    return joining.HOW
