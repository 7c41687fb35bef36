"""Members as Ray actors, and their group.

A call's small result comes to the driver, its payload stays in the object store of the member's node: the driver
holds a reference and passes it on, and Ray moves the bytes from store to store.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError
from ray.experimental import get_local_object_locations

from fedray.errors import MemberDied, MemberFailed
from fedray.member.member import Member
from fedray.protocols.group import MAX_RESULT_BYTES, Waited
from fedray.runtime.failures import FROZEN_S, RESTORE_S, as_error, has_died, reason
from fedray.runtime.parcels import Parcel, info, opening
from fedray.runtime.placement import Placement
from fedray.runtime.reservation import Reservation, reserve
from fedray.types import FedrayError, Health, MemberInfo

CONTROL = frozenset({"info", "ping", "stats", "cancel", "release"})  # answered while a member computes
INLINE_BYTES = 1024  # larger returns go to the store; Ray's default of 100 KiB would send small caches to the driver
SLICE_S = 0.5  # longest a waiting thread sleeps, so that an abandoned wait ends soon
SLOW_S = 20.0  # members take 5 to 10 s to load; who takes longer is waiting for something
PING_S = 1.0  # between an answer of a member and the next question whether it is there
FETCH_S = 5.0  # a small value of a node that just reported it ready

# Read by Hugging Face's libraries when they are imported. An access token is no setting: every node has its own.
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE")


def as_actor(cls: type) -> Any:
    """Make an actor class of a class of Member's shape: calls in any order, one computing, two more in control."""
    # Its calls are not repeated: a session dies with its process, and the request goes on without this member.
    options: dict[str, Any] = {"allow_out_of_order_execution": True, "max_restarts": -1, "max_task_retries": 0}
    options["concurrency_groups"] = {"compute": 1, "control": 2}
    return ray.remote(**options)(opening(cls))


LLMActor = as_actor(Member)


def load_members(
    placements: Sequence[Placement],
    *,
    zoo: str = "tiny",
    folder: Path | None = None,
    loaded: Callable[[MemberInfo], None] = lambda info: None,
    slow: Callable[[str], None] = lambda text: None,
) -> RayGroup:
    """Start one actor per placement, all at once, and wait until every one has its LLM; `loaded` receives each.

    slow: receives what is waited for, once the cluster takes long to find room or members to load.
    Raises FedrayError where the cluster has no room, and naming the first member that cannot start; the others are
    ended.
    """
    own, same = ("device", "dtype", "revision", "prompting", "threads", "reading"), {"zoo": zoo, "folder": folder}
    given = {p.member: {name: getattr(p, name) for name in own} | same for p in placements}
    return start(Member, placements, given, loaded=loaded, slow=slow)


def start(
    cls: type,
    placements: Sequence[Placement],
    given: Mapping[str, Mapping[str, Any]],
    *,
    loaded: Callable[[MemberInfo], None] = lambda info: None,
    slow: Callable[[str], None] = lambda text: None,
) -> RayGroup:
    """Start one actor of a class of Member's shape per placement; given: by name, what else each is made with.

    Raises FedrayError where the cluster has no room for all within ROOM_S.
    """
    actor = LLMActor if cls is Member else as_actor(cls)
    with ExitStack() as undo:
        room = reserve(placements, slow)
        undo.callback(room.release)
        actors: dict[str, ActorHandle] = {}
        for p in placements:
            placed = actor.options(**_options(p), **room.strategy(p))
            actors[p.member] = placed.remote(p.member, **given.get(p.member, {}))
            undo.callback(ray.kill, actors[p.member])
        group = RayGroup(actors, gather_infos(actors, loaded, slow), cls, room)
        undo.pop_all()
        return group


def gather_infos(
    actors: Mapping[str, ActorHandle],
    loaded: Callable[[MemberInfo], None] = lambda info: None,
    slow: Callable[[str], None] = lambda text: None,
) -> dict[str, MemberInfo]:
    """Fetch every member's info with its node, in the order of `actors`, once its constructor has returned.

    Two nodes may share a machine, so that a node's name is the machine's and a piece of Ray's id.
    """
    waiting: dict[Any, str] = {actor.__ray_call__.remote(info): name for name, actor in actors.items()}
    infos: dict[str, Any] = {}
    patience = time.monotonic() + SLOW_S
    while waiting:
        done, _ = ray.wait(list(waiting), timeout=SLICE_S)
        if time.monotonic() > patience:
            names = ", ".join(sorted(waiting.values()))
            slow(f"still loading {names}: large LLMs and downloads take their time (Ctrl-C ends it)")
            patience = math.inf
        for ref in done:
            name = waiting.pop(ref)
            try:
                infos[name] = ray.get(ref)
            except RayError as error:
                why = reason(error)
                raise FedrayError(why if why.startswith(name) else f"{name} cannot be loaded: {why}") from error
            loaded(infos[name])
    return {name: infos[name] for name in actors}


def _options(p: Placement) -> dict[str, Any]:
    env = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a member without a GPU sees none
        "RAY_max_direct_call_object_size": str(INLINE_BYTES),
        "OMP_WAIT_POLICY": "PASSIVE",  # members share cores: a thread that spins while it waits slows the others,
        "GOMP_SPINCOUNT": "20000",  # but one that sleeps between two small products slows its own (docs/log.md)
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
    }
    return {"num_cpus": p.num_cpus, "num_gpus": p.num_gpus, "runtime_env": {"env_vars": env}}


@dataclass(slots=True, eq=False)
class Call:
    """Handle of RayGroup. `reply` is the small value (or receipt), `payload` what a member receives for the handle."""

    member: str
    reply: ObjectRef | None = None
    payload: ObjectRef | None = None
    value: Any = None
    error: BaseException | None = None
    settled: bool = False

    def settle(self, timeout: float) -> None:
        """Fetch the small value, or the error that took its place. Raises GetTimeoutError."""
        if self.settled:
            return
        size = get_local_object_locations([self.reply]).get(self.reply, {}).get("object_size") or 0
        if size > MAX_RESULT_BYTES:
            self.error = MemberFailed(f"{self.member} answered {size} bytes where {MAX_RESULT_BYTES} are allowed")
        else:
            try:
                self.value = ray.get(self.reply, timeout=timeout)
            except GetTimeoutError:
                raise
            except RayError as error:
                self.error = error
        self.settled = True


class RayGroup:
    """Members in actors of their own. Nothing here blocks the event loop: Ray's waiting happens in a thread."""

    def __init__(
        self,
        actors: Mapping[str, ActorHandle],
        members: Mapping[str, MemberInfo],
        cls: type = Member,
        room: Reservation = Reservation(),  # noqa: B008  # frozen
    ) -> None:
        self._actors, self._room = dict(actors), room
        self._ships = frozenset(name for name in dir(cls) if getattr(getattr(cls, name), "ships", False))
        self._lost: dict[str, str] = {}  # who is gone or frozen, and why
        self._ended: set[str] = set()  # of these, who does not come back
        self._restarts = dict.fromkeys(actors, 0)
        self.members: dict[str, MemberInfo] = dict(members)

    def start(self, member: str, method: str, *args: Any, **kwargs: Any) -> Call:
        if member in self._lost:
            return Call(member, error=self._absence(member), settled=True)
        ships = method in self._ships
        refs = self._remote(member, method, args, kwargs, num_returns=2 if ships else 1)
        return Call(member, *refs) if ships else Call(member, refs)

    async def wait(self, handles: Sequence[Call], deadline: float | None = None) -> Waited:
        """Wait for calls: a dead member's fails at once, a frozen one's is late at the deadline, as is one that nobody
        has seen done before."""
        pending = {call.reply for call in handles if not call.settled}
        while pending and (deadline is None or time.monotonic() < deadline):
            left = SLICE_S if deadline is None else max(0.0, min(SLICE_S, deadline - time.monotonic()))
            fetch_s = FETCH_S if deadline is None else max(left, 0.05)
            calls = [call for call in handles if call.reply in pending]
            await asyncio.to_thread(_settle, calls, left, fetch_s)
            pending -= {call.reply for call in calls if call.settled}
        settled = [(i, call) for i, call in enumerate(handles) if call.settled]
        for _, call in settled:
            self._notice(call.member, call.error)
        return Waited(
            ready=tuple(i for i, call in settled if call.error is None),
            failed={
                i: reason(call.error).removeprefix(f"{call.member}: ") for i, call in settled if call.error is not None
            },
            late=tuple(i for i, call in enumerate(handles) if not call.settled),
        )

    def result(self, handle: Call) -> Any:
        handle.settle(FETCH_S)
        if handle.error is not None:
            self._notice(handle.member, handle.error)
            raise as_error(handle.member, handle.error)
        return handle.value

    async def stream(self, member: str, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        if member in self._lost:
            raise self._absence(member)
        try:
            async for ref in self._remote(member, method, args, kwargs, num_returns="streaming"):
                yield await ref
        except RayError as error:
            self._notice(member, error)
            raise as_error(member, error) from None

    def cancel(self, member: str, session: str) -> None:
        self._remote(member, "cancel", (session,), {})

    def release(self, session: str, members: Iterable[str]) -> None:
        for member in members:
            self._remote(member, "release", (session,), {})

    # -- who is there -------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Health]:
        return {n: Health(n not in self._lost, self._lost.get(n, ""), self._restarts[n]) for n in self._actors}

    async def watch(self) -> None:
        """Ask every member for ever whether it is there. Who died is asked for nothing until Ray has started it anew;
        who is frozen is ended."""
        await asyncio.gather(*map(self._watch, self._actors))

    async def restored(self, member: str, deadline: float | None = None) -> bool:
        deadline = time.monotonic() + RESTORE_S if deadline is None else deadline
        while member in self._lost:
            if member in self._ended or time.monotonic() >= deadline:
                return False
            await asyncio.sleep(min(PING_S / 10, max(deadline - time.monotonic(), 0.0)))
        return True

    async def _watch(self, member: str) -> None:
        while member not in self._ended:
            try:
                await asyncio.wait_for(self._remote(member, "ping", (), {}), FROZEN_S)
                if member in self._lost:
                    await self._take_back(member)
            except TimeoutError:
                if member not in self._lost:  # it may still be loading
                    self._lost[member] = f"died (it did not answer for {FROZEN_S:g} s, and was ended)"
                    ray.kill(self._actors[member], no_restart=False)
            except RayError as error:
                self._notice(member, error)
            await asyncio.sleep(PING_S)

    async def _take_back(self, member: str) -> None:
        found = await self._actors[member].__ray_call__.remote(info)
        if found.weights_hash != self.members[member].weights_hash:
            self._lost[member] = "was started anew with other weights; open the federation anew"
            self._ended.add(member)
            return
        self.members[member] = found
        self._restarts[member] += 1
        del self._lost[member]

    def _notice(self, member: str, error: BaseException | None) -> None:
        if error is None or not has_died(error):
            return
        self._lost.setdefault(member, reason(error))
        if isinstance(error, ActorDiedError):  # Ray has given it up
            self._ended.add(member)

    def _absence(self, member: str) -> MemberDied:
        later = "" if member in self._ended else "; it is being started anew"
        return MemberDied(f"{member}: {self._lost[member]}{later}")

    def close(self) -> None:
        """Kill the members and release their resources."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._room.release()

    def _remote(
        self, member: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], num_returns: Any = 1
    ) -> Any:
        group = "control" if method in CONTROL else "compute"
        remote = getattr(self._actors[member], method).options(concurrency_group=group, num_returns=num_returns)
        return remote.remote(*map(_given, args), **kwargs)


def _given(argument: Any) -> Any:
    if not isinstance(argument, Call):
        return argument
    return argument.reply if argument.payload is None else Parcel(argument.payload)


def _settle(calls: Sequence[Call], timeout: float, fetch_s: float) -> None:
    """Settle the calls that are ready within `timeout`."""
    replies = list({call.reply for call in calls})
    done = set(ray.wait(replies, num_returns=len(replies), timeout=timeout, fetch_local=False)[0])
    for call in calls:
        if call.reply in done:
            with suppress(GetTimeoutError):
                call.settle(fetch_s)
