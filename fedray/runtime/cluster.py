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
from typing import Any

import grpc
import ray
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]  # compiled
from ray.exceptions import RayError

from fedray.types import FedrayError

PROBE_S = 2.0  # a head node that says nothing for so long is not there; ray.init would try for two minutes
WARM_BYTES = 64 << 20
_CHECK = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_HOW = "start one with `ray start --head`, or leave ray.address and RAY_ADDRESS unset for a cluster of fedray's own"


@dataclass(frozen=True, slots=True)
class Connection:
    """This process's place in a cluster. owned: `close` leaves it, which ends an embedded one."""

    address: str
    is_embedded: bool
    namespace: str
    owned: bool = field(default=True, repr=False)

    def close(self) -> None:
        if self.owned:
            ray.shutdown()


def connect(
    address: str | None = None,
    *,
    namespace: str = "fedray",
    num_cpus: float | None = None,
    object_store_mb: int = 256,
) -> Connection:
    """Join the cluster at `address` or RAY_ADDRESS ("HOST:PORT", "auto"), else start one; "local" always starts one.

    num_cpus and object_store_mb are those of a cluster started here. A process that Ray knows already stays where it
    is. Raises FedrayError within seconds where there is no cluster to join.
    """
    if ray.is_initialized():
        return Connection(_joined_at(), False, namespace, owned=False)
    if will_embed(address):
        return _embed(namespace, num_cpus, object_store_mb)
    return _join(address or os.environ["RAY_ADDRESS"], namespace)


def will_embed(address: str | None = None) -> bool:
    """Whether `connect` would start a cluster of its own."""
    return not ray.is_initialized() and (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def _join(address: str, namespace: str) -> Connection:
    if "://" in address:
        raise FedrayError(
            f"cannot join {address}: Ray Client is not supported; give the cluster's HOST:PORT, or run on the cluster "
            f"with `ray job submit`"
        )
    if address != "auto":
        _probe(address)
    try:
        _init(address, namespace=namespace)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise FedrayError(f"cannot join the Ray cluster at {address} ({_first_line(error)}); {_HOW}") from error
    return Connection(_joined_at(), False, namespace)


def _probe(address: str) -> None:
    """Ask the head node whether it is one and takes our token; ray.init would try for long and end the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise FedrayError(f"{address!r} is no address of a Ray cluster: write HOST:PORT, auto or local")
    # As ray.init does: a token is sent if there is one, unless RAY_AUTH_MODE decides.
    token = AuthenticationTokenLoader.instance().get_token_for_http_header("RAY_AUTH_MODE" not in os.environ)
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CHECK)(b"", timeout=PROBE_S, wait_for_ready=True, metadata=tuple(token.items()))
        except grpc.RpcError as error:
            raise _refused(address, error) from error


def _refused(address: str, error: grpc.RpcError) -> FedrayError:
    code = error.code()  # pyright: ignore[reportAttributeAccessIssue]  # every RpcError of a call is a Call too
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return FedrayError(
            f"the Ray cluster at {address} does not accept the access token; set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN_PATH to the file with the cluster's own"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return FedrayError(f"no Ray cluster answers at {address} within {PROBE_S:g} s; {_HOW}")
    return FedrayError(f"what answers at {address} is not the head node of a Ray cluster; {_HOW}")


def _embed(namespace: str, num_cpus: float | None, object_store_mb: int) -> Connection:
    try:
        with _private_files():
            _init(
                "local",
                namespace=namespace,
                num_cpus=num_cpus,
                object_store_memory=object_store_mb << 20,
                include_dashboard=False,
                _system_config={"preallocate_plasma_memory": True},
            )
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise FedrayError(f"Ray cannot start on this machine ({_first_line(error)}); try ray.enabled=false") from error
    _warm_up(object_store_mb << 20)
    return Connection(_joined_at(), True, namespace)


def _warm_up(capacity: int) -> None:
    """Touch the store's first pages now: a cold store makes the first transfers slow by up to two seconds."""
    ray.put(bytes(min(WARM_BYTES, capacity // 4)))


def _init(address: str, **options: Any) -> None:
    """ray.init, quietly. Ctrl-C waits until it is through: a cluster that is half there leaves processes behind.

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
    """Collects Ctrl-C instead of raising it. Only the main thread is ever interrupted."""
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
def _private_files() -> Iterator[None]:
    """What Ray writes (its access token, logs, spilled caches) is for this user alone: Ray's own default is 0644."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _joined_at() -> str:
    return ray.get_runtime_context().gcs_address


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")
