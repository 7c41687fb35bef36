"""Check that a Ray cluster answers at an address and accepts this process.

It runs before ray.init, which retries for long, writes to stderr and may end the process. Only files that Ray documents
are read: where `ray start` notes its address, and where an access token may lie.
"""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from fedray.types import FedrayError

PROBE_S = 2.0  # ray.init would try for two minutes
HOW = "start one with `ray start --head`, or leave ray.address and RAY_ADDRESS unset for a cluster of fedray's own"
TOKEN = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's own (~/.ray/auth_token on its head "
    "node) where yours is not in ~/.ray/auth_token"
)
_CHECK = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def check(address: str) -> None:
    """Probe the head node. Raises FedrayError within seconds: no answer, or this process's token is not accepted.

    address: HOST:PORT, or auto, for which Ray looks on this machine itself.
    """
    at = _noted() if address == "auto" else address
    if at is None:
        return
    host, _, port = at.rpartition(":")
    if not host or not port.isdigit():
        raise FedrayError(f"{at!r} is no address of a Ray cluster: write HOST:PORT, auto or local")
    # As Ray does: a token is sent where RAY_AUTH_MODE says so, and to a cluster that was found on this machine.
    mode = os.environ.get("RAY_AUTH_MODE", "token" if address == "auto" else "")
    token, where = _token() if mode == "token" else (None, "")
    sent = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(at, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_CHECK)(b"", timeout=PROBE_S, wait_for_ready=True, metadata=sent)
        except grpc.RpcError as error:
            raise _refused(at, mode, where if token else "", error) from error


def system_folder() -> Path:
    """Find where Ray keeps its folder `ray` by default."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _noted() -> str | None:
    """Read the address that the latest `ray start --head` on this machine has written."""
    try:
        return (system_folder() / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _token() -> tuple[str | None, str]:
    """Read the access token; returns it and where it was found."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip(), "RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None, str(path)
    except (OSError, UnicodeDecodeError):
        return None, str(path)


def _refused(address: str, mode: str, token: str, error: grpc.RpcError) -> FedrayError:
    """Describe a refusal. mode: of authentication; token: where it was found, empty where there was none."""
    code = error.code()  # pyright: ignore[reportAttributeAccessIssue]  # every RpcError of a call is a Call too
    if code == grpc.StatusCode.UNAUTHENTICATED:
        what = f"does not accept the access token of {token}" if token else "wants an access token"
        return FedrayError(f"the Ray cluster at {address} {what}: {TOKEN}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return FedrayError(f"no Ray cluster answers at {address} within {PROBE_S:g} s; {HOW}")
    return FedrayError(f"what answers at {address} is not the head node of a Ray cluster; {HOW}")
