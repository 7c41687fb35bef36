"""The port protocols speak to, and its in-process form.

A protocol holds handles, never tensors: `start` returns one at once, `wait` says which are ready, failed or late,
`result` is for small values (text, tokens, usage: at most 64 KiB, never KV), `stream` yields small values one by one.
A handle passed to `start` as a positional argument resolves inside the member that receives it, so a cache goes from
sender to receiver without passing the driver or the coordinator. Pass only handles that `wait` reported ready.

Methods marked `@ships` (wire/payload.py) return (receipt, payload): `result` gives the receipt, and the handle stands
for the payload where it is an argument.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fedray.border import why
from fedray.types import FedrayError, Health, MemberInfo

if TYPE_CHECKING:
    from fedray.member.member import Member

Handle = Any
MAX_RESULT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Waited:
    """ready: in the order asked; failed: handle index -> reason; late: handle indices not done by the deadline."""

    ready: tuple[int, ...]
    failed: Mapping[int, str] = field(default_factory=dict)
    late: tuple[int, ...] = ()


class Group(Protocol):
    """Members by name. `deadline` is a point of `time.monotonic()`, or None to wait for ever."""

    @property
    def members(self) -> Mapping[str, MemberInfo]: ...

    def start(self, member: str, method: str, *args: Any, **kwargs: Any) -> Handle: ...

    def start_all(self, member: str, method: str, *args: Any) -> Sequence[Handle]:
        """Start a call of no session at all replicas of a member that are there."""
        ...

    async def wait(self, handles: Sequence[Handle], deadline: float | None = None) -> Waited: ...

    def result(self, handle: Handle) -> Any: ...

    def stream(self, member: str, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]: ...

    def cancel(self, member: str, session: str) -> None: ...

    def release(self, session: str, members: Iterable[str]) -> None: ...

    def health(self) -> dict[str, Health]: ...

    async def watch(self) -> None:
        """Keep `health` up to date, for ever where members can die."""
        ...

    async def restored(self, member: str, deadline: float | None = None) -> bool:
        """Wait for a member that died; False: it does not come back, or not by the deadline."""
        ...

    async def drain(self, member: str, deadline: float | None = None) -> None:
        """End a member once it holds no session any more, or at the deadline."""
        ...


@dataclass(slots=True)
class _Done:
    """The handle of LocalGroup: the value itself, or the error that took its place. ships: a member gets `payload` for
    the handle, and not the value."""

    value: Any = None
    payload: Any = None
    ships: bool = False
    error: Exception | None = None
    done_at: float = 0.0


class LocalGroup:
    """Members in this process; every call runs when it is started."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = dict(members)
        self.members: Mapping[str, MemberInfo] = {name: m.info() for name, m in self._members.items()}

    def start(self, member: str, method: str, *args: Any, **kwargs: Any) -> _Done:
        function = getattr(self._members[member], method)
        try:
            value = function(*map(_resolve, args), **kwargs)
            ships = getattr(function, "ships", False)
            value, payload = value if ships else (value, None)
        except Exception as error:  # noqa: BLE001  # what a remote member would report as failed, whatever it is
            return _Done(error=error, done_at=time.monotonic())
        return _Done(value, payload, ships, done_at=time.monotonic())

    def start_all(self, member: str, method: str, *args: Any) -> list[_Done]:
        return [self.start(member, method, *args)]

    async def wait(self, handles: Sequence[_Done], deadline: float | None = None) -> Waited:
        late = {i for i, h in enumerate(handles) if deadline is not None and h.done_at > deadline}
        failed = {i: why(h.error) for i, h in enumerate(handles) if h.error and i not in late}
        ready = tuple(i for i in range(len(handles)) if i not in late and i not in failed)
        return Waited(ready, failed, tuple(sorted(late)))

    def result(self, handle: _Done) -> Any:
        if handle.error:
            raise handle.error
        return handle.value

    async def stream(self, member: str, method: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        for item in getattr(self._members[member], method)(*map(_resolve, args), **kwargs):
            yield item

    def cancel(self, member: str, session: str) -> None:
        self._members[member].cancel(session)

    def release(self, session: str, members: Iterable[str]) -> None:
        for member in members:
            self._members[member].release(session)

    def health(self) -> dict[str, Health]:
        return {name: Health() for name in self._members}

    async def watch(self) -> None:
        pass

    async def restored(self, member: str, deadline: float | None = None) -> bool:
        return True

    async def drain(self, member: str, deadline: float | None = None) -> None:
        raise FedrayError(f"{member} is in this process, and ends with it: only actors of Ray are drained")


def _resolve(argument: Any) -> Any:
    if not isinstance(argument, _Done):
        return argument
    return argument.payload if argument.ships else argument.value
