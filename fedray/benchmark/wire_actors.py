"""Actors that send and receive caches, without an LLM: the wire alone."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import torch

from fedray.federation.event_loop import Background
from fedray.llm.cache import KVCache
from fedray.protocols.group import Group, Handle
from fedray.settings.settings import RaySettings
from fedray.types import FedrayError, KVSpec, MemberInfo
from fedray.wire.payload import Payload, pack, ships, unpack


class Station:
    """Actor that sends its cache in every way that is compared, and receives another's."""

    def __init__(self, name: str, *, spec: tuple[int, int, int], tokens: int, dtype: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.name = name
        self.cache = random_cache(KVSpec(*spec), tokens, getattr(torch, dtype))

    def info(self) -> MemberInfo:
        dtype = str(self.cache.keys[0].dtype)
        return MemberInfo(self.name, "none", 0, self.cache.spec, "", "", "cpu", dtype, platform.node(), os.getpid(), 0)

    def nothing(self) -> None:
        """Do nothing: the cost of a call."""

    @ships
    def payload(self) -> tuple[None, Payload]:
        return None, pack(self.name, self.cache, list(range(self.cache.batch)))

    @ships
    def tensors(self) -> tuple[None, list[torch.Tensor]]:
        """Send plain tensors, as Ray pickles them."""
        return None, [tensor.clone() for tensor in (*self.cache.keys, *self.cache.values)]

    def take(self, payload: Payload) -> int:
        """Validate a payload and rebuild its cache in memory of one's own."""
        return unpack(payload).cache.tokens

    def take_tensors(self, tensors: list[torch.Tensor]) -> int:
        return sum(tensor.clone().shape[2] for tensor in tensors)


class Hop:
    """Two stations in processes of their own; each method is one exchange, from the call to the answer."""

    def __init__(self, group: Group, loop: Background) -> None:
        self._group, self._loop = group, loop

    def nothing(self) -> None:
        self._call("receiver", "nothing")

    def payload(self) -> None:
        self._call("receiver", "take", self._call("sender", "payload"))

    def tensors(self) -> None:
        self._call("receiver", "take_tensors", self._call("sender", "tensors"))

    def _call(self, member: str, method: str, *args: Any) -> Handle:
        handle = self._group.start(member, method, *args)
        waited = self._loop.run(self._group.wait([handle]))
        if waited.failed:
            raise FedrayError(f"{member} failed: {waited.failed[0]}")
        return handle


@contextmanager
def hop(ray: RaySettings, spec: KVSpec, tokens: int, dtype: str) -> Iterator[Hop]:
    """Start two stations on the cluster of the settings, or one of their own with room for what is measured."""
    from fedray.runtime import actors, cluster
    from fedray.runtime.placement import Placement, place

    made = {"spec": (spec.layers, spec.kv_heads, spec.head_dim), "tokens": tokens, "dtype": dtype}
    made["threads"] = torch.get_num_threads()  # as the copy that it is compared with
    names = ("receiver", "sender")
    own = replace(ray, object_store_mb=max(ray.object_store_mb, 1024)).of_cluster
    with closing(cluster.connect(ray.address, **own)), closing(Background()) as loop:
        placed = place([Placement(name) for name in names])
        with closing(actors.start(Station, placed, dict.fromkeys(names, made))) as group:
            yield Hop(group, loop)


def random_cache(spec: KVSpec, tokens: int, dtype: torch.dtype, batch: int = 1) -> KVCache:
    """Make a cache of Gaussian numbers."""
    shape = (batch, spec.kv_heads, tokens, spec.head_dim)
    keys, values = (torch.randn(spec.layers, *shape).to(dtype).unbind() for _ in range(2))  # as a prefill leaves them
    positions = torch.arange(tokens)[None].repeat(batch, 1)
    return KVCache(spec, keys, values, torch.full((batch,), tokens), positions)
