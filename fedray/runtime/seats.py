"""One actor of a member: whether it is there, and what it holds. Ray starts an actor anew that died; one that is frozen
is noticed here, and ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError

from fedray.errors import MemberDied
from fedray.runtime.failures import FROZEN_S, has_died, reason
from fedray.runtime.parcels import info
from fedray.types import MemberInfo

PING_S = 1.0  # between an answer and the next question whether it is there
LEAVING = "was drained"
CONTROL = frozenset({"info", "ping", "stats", "cancel", "release"})  # answered while a member computes


@dataclass(slots=True, eq=False)
class Seat:
    """lost: why nobody is there ("": somebody is); ended: whether nobody will be; leaving: whether it takes no new
    session; sessions: that it holds."""

    member: MemberInfo
    actor: ActorHandle
    lost: str = ""
    ended: bool = False
    leaving: bool = False
    restarts: int = 0
    sessions: set[str] = field(default_factory=set)

    def remote(self, method: str, *args: Any, num_returns: Any = 1, **kwargs: Any) -> Any:
        options = {"concurrency_group": "control" if method in CONTROL else "compute", "num_returns": num_returns}
        return getattr(self.actor, method).options(**options).remote(*args, **kwargs)

    def notice(self, error: BaseException, life: int) -> None:
        """Ask it for nothing more, if an error of this life of its says that it died."""
        if life == self.restarts and has_died(error):
            self._lose(reason(error))
            self.ended |= isinstance(error, ActorDiedError)  # Ray has given it up

    def takes(self, sessions: Sequence[str]) -> bool:
        """Check whether it can be asked something of some sessions now."""
        return not self.lost and (not self.leaving or not self.sessions.isdisjoint(sessions))

    def absence(self) -> MemberDied:
        if self.leaving and not self.ended:
            return MemberDied(f"{self.member.name}: {LEAVING}")
        return MemberDied(f"{self.member.name}: {self.lost}{'' if self.ended else '; it is being started anew'}")

    async def drain(self, deadline: float | None) -> None:
        """Let one that is leaving end what it holds, as long as there is time, and then itself."""
        while self.sessions and not self.lost and (deadline is None or time.monotonic() < deadline):
            await asyncio.sleep(PING_S / 10)
        self._lose(LEAVING)
        self.ended = True
        ray.kill(self.actor)

    async def watch(self) -> None:
        """Ask it for ever whether it is there."""
        while not self.ended:
            try:
                await asyncio.wait_for(self.remote("ping"), FROZEN_S)
                if self.lost:
                    there: Any = self.actor.__ray_call__.remote(info)
                    self._take_back(await asyncio.wait_for(there, FROZEN_S))
            except TimeoutError:
                if not self.lost:  # or else it is still loading
                    self._lose(f"died (it did not answer for {FROZEN_S:g} s, and was ended)")
                    ray.kill(self.actor, no_restart=False)
            except RayError as error:
                self.notice(error, self.restarts)
            await asyncio.sleep(PING_S)

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why
        self.sessions.clear()

    def _take_back(self, found: MemberInfo) -> None:
        if found.weights_hash != self.member.weights_hash:
            self.lost, self.ended = "was started anew with other weights; open the federation anew", True
            ray.kill(self.actor)
            return
        self.member, self.lost = found, ""
        self.restarts += 1
