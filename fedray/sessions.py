"""What a member keeps between calls: prompts it has read, per session, until they are released or forgotten."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor

from fedray.llm.cache import KVCache
from fedray.llm.model import Span
from fedray.llm.track import Track
from fedray.speculation.drafts import Drafts
from fedray.types import SessionLost

TTL_S = 600.0  # a session nobody released or used for so long is dropped


@dataclass(slots=True)
class Session:
    """Prompts that were read. rows: the request's row number of each; spans: where their tokens lie in the text.

    state_BTD: what a gate reads; weights_BS: gate weights of the plan's senders; track: what is read on after
    the prompts; drafts: what a server of SpecFed has said and drafted.
    """

    rows: tuple[int, ...]
    cache: KVCache
    spans: list[list[Span]]
    ids: list[list[int]]
    state_BTD: Tensor | None = None
    weights_BS: Tensor | None = None
    track: Track | None = None
    drafts: Drafts | None = None
    used_at: float = field(default_factory=time.monotonic)

    def weights_by_name(self, senders: tuple[str, ...]) -> list[dict[str, float]]:
        """Per row the gate weight of every sender of the plan."""
        if self.weights_BS is None:
            return [{} for _ in range(self.cache.batch)]
        return [dict(zip(senders, row, strict=True)) for row in self.weights_BS.tolist()]

    def own(self) -> KVCache:
        """The prompts without their last tokens, which are read on top of what is fused."""
        return self.cache.crop(self.cache.lengths - 1)


class Sessions:
    """Open sessions by name, and those that have ended: what still runs or waits for one of these must stop.

    Calls come from several threads: each change is one step of a dictionary.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._open: dict[str, Session] = {}
        self._ended: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Session:
        """Raises SessionLost where there is none."""
        held = self._open.get(name)
        if held is None:
            raise SessionLost(f"{self.owner} holds no session {name!r}; it was released, or the member was restarted")
        held.used_at = time.monotonic()
        return held

    def put(self, name: str, session: Session) -> None:
        """Keep a session, unless it ended while its prompts were read. Raises SessionLost then."""
        self._open[name] = session
        if name in self._ended:
            self._open.pop(name, None)
            self.check(name)

    def check(self, name: str) -> None:
        """Raises SessionLost if the session has ended."""
        if self.has_ended(name):
            raise SessionLost(f"{self.owner}: session {name!r} was cancelled or released")

    def has_ended(self, name: str) -> bool:
        return name in self._ended

    def cancel(self, name: str) -> None:
        self._ended[name] = time.monotonic()

    def release(self, name: str) -> None:
        self.cancel(name)
        self._open.pop(name, None)

    def forget(self) -> None:
        """Drop what nobody used for long."""
        oldest = time.monotonic() - TTL_S
        for name in [n for n, held in list(self._open.items()) if held.used_at < oldest]:
            self._open.pop(name, None)
        for name in [n for n, ended_at in list(self._ended.items()) if ended_at < oldest]:
            self._ended.pop(name, None)
