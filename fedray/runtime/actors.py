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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.experimental import get_local_object_locations

from fedray.errors import MemberFailed
from fedray.member.member import Member
from fedray.protocols.group import MAX_RESULT_BYTES, Waited
from fedray.runtime.failures import RESTORE_S, as_error, reason
from fedray.runtime.parcels import Parcel, info, opening
from fedray.runtime.placement import Placement
from fedray.runtime.reservation import Reservation, reserve
from fedray.runtime.seats import LEAVING, Seat
from fedray.types import FedrayError, Health, MemberInfo, Talk

INLINE_BYTES = 1024  # larger returns go to the store; Ray's default of 100 KiB would send small caches to the driver
SLICE_S = 0.5  # longest a waiting thread sleeps, so that an abandoned wait ends soon
SLOW_S = 20.0  # members take 5 to 10 s to load; who takes longer is waiting for something
RESTORED_S = 0.1  # between two looks whether a member is back
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
            actors[p.seat] = placed.remote(p.member, **given.get(p.member, {}))
            undo.callback(ray.kill, actors[p.seat])
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

    seat: Seat
    reply: Any = None  # an ObjectRef; None where nobody could be asked
    payload: ObjectRef | None = None
    value: Any = None
    error: BaseException | None = None
    settled: bool = False
    life: int = field(init=False)  # of the actor: what it died of in another says nothing of this one

    def __post_init__(self) -> None:
        self.life = self.seat.restarts

    @property
    def member(self) -> str:
        return self.seat.member.name

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
                self.seat.notice(error, self.life)
        self.settled = True


class RayGroup:
    """Members in actors of their own, some in several. Nothing here blocks the event loop: Ray's waiting happens in a
    thread."""

    def __init__(
        self,
        actors: Mapping[str, ActorHandle],
        members: Mapping[str, MemberInfo],
        cls: type = Member,
        room: Reservation = Reservation(),  # noqa: B008  # frozen
    ) -> None:
        """actors, and who is in them: by the name of a member, and of its replicas by any others."""
        self._actors, self._room = dict(actors), room
        self._ships = frozenset(name for name in dir(cls) if getattr(getattr(cls, name), "ships", False))
        self._seats: dict[str, list[Seat]] = {}
        for name, actor in actors.items():
            self._seats.setdefault(members[name].name, []).append(Seat(members[name], actor))

    @property
    def members(self) -> dict[str, MemberInfo]:
        return {name: seats[0].member for name, seats in self._seats.items()}

    def start(self, member: str, method: str, *args: Any, **kwargs: Any) -> Call:
        seat, takes = self._seat(member, args, kwargs)
        if not takes:
            return Call(seat, error=seat.absence(), settled=True)
        ships = method in self._ships
        refs = seat.remote(method, *map(_given, args), **kwargs, num_returns=2 if ships else 1)
        return Call(seat, *refs) if ships else Call(seat, refs)

    def start_all(self, member: str, method: str, *args: Any) -> list[Call]:
        return [Call(seat, seat.remote(method, *args)) for seat in self._seats[member] if seat.takes(())]

    async def wait(self, handles: Sequence[Call], deadline: float | None = None) -> Waited:
        """Wait for calls: a dead member's fails at once, a frozen one's is late at the deadline."""
        pending = {call.reply for call in handles if not call.settled}
        while pending:
            left = SLICE_S if deadline is None else max(0.0, min(SLICE_S, deadline - time.monotonic()))
            fetch_s = FETCH_S if deadline is None else max(left, 0.05)
            calls = [call for call in handles if call.reply in pending]
            await asyncio.to_thread(_settle, calls, left, fetch_s)
            pending -= {call.reply for call in calls if call.settled}
            if deadline is not None and time.monotonic() >= deadline:
                break
        settled = [(i, call) for i, call in enumerate(handles) if call.settled]
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
            raise as_error(handle.member, handle.error)
        return handle.value

    async def stream(self, member: str, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        seat, takes = self._seat(member, args, kwargs)
        if not takes:
            raise seat.absence()
        life = seat.restarts
        try:
            async for ref in seat.remote(method, *map(_given, args), **kwargs, num_returns="streaming"):
                yield await ref
        except RayError as error:
            seat.notice(error, life)
            raise as_error(member, error) from None

    def cancel(self, member: str, session: str) -> None:
        for seat in self._seats[member]:
            if session in seat.sessions:
                seat.remote("cancel", session)

    def release(self, session: str, members: Iterable[str]) -> None:
        for seat in (seat for member in members for seat in self._seats[member]):
            if session in seat.sessions:
                seat.sessions.discard(session)
                seat.remote("release", session)

    # -- who is there -------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Health]:
        return {name: _health(seats) for name, seats in self._seats.items()}

    async def watch(self) -> None:
        await asyncio.gather(*(seat.watch() for seats in self._seats.values() for seat in seats))

    async def restored(self, member: str, deadline: float | None = None) -> bool:
        deadline = time.monotonic() + RESTORE_S if deadline is None else deadline
        seats = self._seats[member]
        while all(seat.lost for seat in seats):
            if all(seat.ended for seat in seats) or time.monotonic() >= deadline:
                return False
            await asyncio.sleep(RESTORED_S)
        return True

    async def drain(self, member: str, deadline: float | None = None) -> None:
        """End a member once it holds no session any more, or at the deadline."""
        for seat in self._seats[member]:
            seat.leaving = True
        await asyncio.gather(*(seat.drain(deadline) for seat in self._seats[member]))

    def _seat(self, member: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Seat, bool]:
        """The actor for a call, and whether it can be asked: the one that holds a session of it, or else the one that
        holds fewest. All of a session, and of a conversation, go to one."""
        sessions, seats = _sessions(args, kwargs), self._seats[member]
        holding = (seat for session in sessions for seat in seats if session in seat.sessions)
        fewest = min(seats, key=lambda seat: (not seat.takes(sessions), len(seat.sessions)))
        seat = next(holding, fewest)
        takes = seat.takes(sessions)
        if takes:
            seat.sessions.update(sessions)
        return seat, takes

    def close(self) -> None:
        """Kill the members and release their resources."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._room.release()


def _sessions(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Under which names a member keeps what a call is for: a conversation's, and a request's own."""
    talks = (getattr(given, "talk", given) for given in (*args, *kwargs.values()))
    kept = [talk.session for talk in talks if isinstance(talk, Talk) and talk.session]
    return [*kept, *(name for name in args[:1] if isinstance(name, str))]


def _health(seats: Sequence[Seat]) -> Health:
    ready, restarts = sum(seat.takes(()) for seat in seats), sum(seat.restarts for seat in seats)
    return Health(ready, len(seats), "" if ready else seats[0].lost or LEAVING, restarts)


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
