"""A member without an LLM: its methods have Member's shapes, and fail, dawdle and ship on demand."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator

import numpy as np

from fedray.errors import SessionLost
from fedray.types import FedrayError, KVSpec, MemberInfo

Parcel = tuple[bytes, tuple[np.ndarray, ...]]


class StandIn:
    def __init__(self, name: str = "stand-in", refuse: str = "") -> None:
        if refuse:
            raise FedrayError(refuse)
        self.name = name
        self.cancelled: set[str] = set()

    def info(self) -> MemberInfo:
        spec = KVSpec(1, 1, 1)
        return MemberInfo(self.name, "none", 0, spec, "", "", "cpu", "float32", platform.node(), os.getpid(), context=0)

    def ping(self) -> float:
        return time.time()

    def share(self, size: int) -> tuple[str, Parcel]:
        """`size` bytes of payload in eight buffers."""
        return f"{size} bytes", (b"header", tuple(np.full(size // 8, i, np.uint8) for i in range(8)))

    share.ships = True  # pyright: ignore[reportFunctionMemberAccess]

    def weigh(self, *parcels: Parcel) -> int:
        """The bytes that arrived."""
        return sum(buffer.nbytes for _, buffers in parcels for buffer in buffers)

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return self.name

    def whose(self, session: str, talk: object = None) -> int:
        return os.getpid()

    def sleep_in(self, session: str, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self, message: str) -> None:
        raise ValueError(message)

    def lose(self) -> None:
        raise SessionLost("session 7 is not here")

    def babble(self, size: int) -> bytes:
        return bytes(size)

    def count(self, upto: int, *, broken: bool = False) -> Iterator[str]:
        for number in range(upto):
            yield str(number)
        if broken:
            raise ValueError("lost count")

    def count_until_cancelled(self, session: str) -> int:
        number = 0
        while session not in self.cancelled:
            number += 1
            time.sleep(0.01)
        return number

    def cancel(self, session: str) -> None:
        self.cancelled.add(session)

    def release(self, session: str) -> None:
        self.cancelled.discard(session)


class Stillborn(StandIn):
    """Its process dies while it loads."""

    def __init__(self, name: str) -> None:
        os._exit(1)
