"""Wrapper of a member's methods in its process: payloads are deserialized there, and may fail for it alone.

Imports nothing of LLMs: an actor's process imports this before the class that it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from inspect import getmembers, isfunction
from typing import Any

import ray
from ray import ObjectRef
from ray.experimental import internal_kv

from fedray.errors import FedrayError
from fedray.runtime.failures import reason
from fedray.types import MemberInfo


@dataclass(frozen=True, slots=True)
class Parcel:
    """Reference to a payload that the member deserializes itself.

    Ray would resolve an argument before the call, and fail the receiver's call where a sender's payload is lost or
    cannot be unpickled.
    """

    payload: ObjectRef


def opening(cls: type) -> type:
    """Subclass a class so that its public methods receive payloads for parcels.

    An actor of it that dies before it has loaded once is not started again: it would die so for ever.
    """

    def load(self: Any, *args: Any, **kwargs: Any) -> None:
        actor = ray.get_runtime_context()
        key = f"fedray loaded {actor.get_actor_id()}".encode()
        if actor.was_current_actor_reconstructed and not internal_kv._internal_kv_exists(key):
            raise FedrayError(f"{args[0]} cannot be loaded: its process died (out of memory, or a crash)")
        cls.__init__(self, *args, **kwargs)
        internal_kv._internal_kv_put(key, b"")

    def wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, *_opened(args), **kwargs)

        return call

    methods = {name: wrapped(m) for name, m in getmembers(cls, isfunction) if not name.startswith("_")}
    return type(cls.__name__, (cls,), {**methods, "__init__": load})


def _opened(args: Sequence[Any]) -> list[Any]:
    """Replace parcels by their payloads; a FedrayError stands for what cannot be opened."""
    parcels = [arg.payload for arg in args if isinstance(arg, Parcel)]
    try:
        payloads = iter(ray.get(parcels))  # side by side, where they are on other nodes
    except Exception:  # noqa: BLE001  # unpickling runs what a sender wrote
        payloads = map(_payload, parcels)
    return [next(payloads) if isinstance(arg, Parcel) else arg for arg in args]


def _payload(ref: ObjectRef) -> Any:
    try:
        return ray.get(ref)
    except Exception as error:  # noqa: BLE001  # as above; this sender's alone
        return FedrayError(f"what it sent cannot be read: {reason(error)}")


def info(member: Any) -> MemberInfo:
    """Describe a member, with its node."""
    found: MemberInfo = member.info()
    return replace(found, node=f"{found.node}/{ray.get_runtime_context().get_node_id()[:8]}")
