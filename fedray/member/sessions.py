"""What a member keeps between calls: prompts it has read, per session, until they are released or forgotten."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from fedray.errors import SessionLost
from fedray.llm.cache import KVCache
from fedray.llm.model import Span
from fedray.llm.prefix import Known
from fedray.llm.rewindable_cache import Track
from fedray.llm.token_ids import shared
from fedray.types import Round

K = TypeVar("K", bound="Kept")
TTL_S = 600.0  # a session nobody released or used for so long is dropped


@dataclass(slots=True)
class Kept:
    """What a session holds, whatever it is."""

    used_at: float = field(default_factory=time.monotonic, kw_only=True)

    def end(self) -> None:
        """Stop what still runs for it."""


@dataclass(slots=True)
class Drafts:
    """answers: the tokens of every row so far (of a worker: with the last drafts that it was told); room: how many it
    may have in all; drafts: of the round under way, and q_BGV what they were drawn from (None where they are the
    likeliest ones); stuck: rows whose next position nobody had a distribution for, and which are not drafted for in the
    next round; rounds: that have been decided, and reply: of the last one."""

    answers: list[list[int]]
    room: list[int]
    ended: list[bool]
    drafts: list[list[int]] = field(default_factory=list)
    q_BGV: Tensor | None = None
    stuck: set[int] = field(default_factory=set)
    rounds: int = 0
    reply: Round | None = None

    def active(self) -> tuple[int, ...]:
        return tuple(b for b, ended in enumerate(self.ended) if not ended)

    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.answers))


@dataclass(slots=True)
class Session(Kept):
    """Prompts that were read. rows: the request's row number of each; spans: where their tokens lie in the text.

    state_BTD: what a gate reads, after `state_layer` layers; weights_BS: gate weights of the plan's senders.
    reused: tokens of all rows that were held from an earlier turn, and not read again. track: what is read on after
    the prompts; drafts: what a server of SpecFed has said and drafted; draft: the cache of the answers that a sender
    has drafted, row by row, at the positions behind its prompts.
    """

    rows: tuple[int, ...]
    cache: KVCache
    spans: list[list[Span]]
    ids: list[list[int]]
    state_BTD: Tensor | None = None
    state_layer: int | None = None
    reused: int = 0
    weights_BS: Tensor | None = None
    track: Track | None = None
    drafts: Drafts | None = None
    draft: KVCache | None = None

    def weights_by_name(self, senders: tuple[str, ...]) -> list[dict[str, float]]:
        """Per row the gate weight of every sender of the plan."""
        if self.weights_BS is None:
            return [{} for _ in range(self.cache.batch)]
        return [dict(zip(senders, row, strict=True)) for row in self.weights_BS.tolist()]

    def read_on(self) -> Track:
        """What is read on after the prompts; it begins as the prompts at the first call."""
        if self.track is None:
            self.track = Track.of(self.cache, self.ids)
        return self.track

    def own(self) -> KVCache:
        """The prompts without their last tokens, which are read on top of what is fused."""
        return self.cache.crop(self.cache.lengths - 1)

    def known(self, rows: tuple[int, ...], ids: list[list[int]], state_layer: int | None) -> Known | None:
        """What was read here of other prompts of some rows: of each as many tokens as are the same from its beginning.

        None: nothing, or without the states that are asked for.
        """
        if state_layer is not None and state_layer != self.state_layer:
            return None
        places = {i: self.rows.index(row) for i, row in enumerate(rows) if row in self.rows}
        lengths = [shared(self.ids[places[i]], row) if i in places else 0 for i, row in enumerate(ids)]
        if not any(lengths):
            return None
        held = self.cache.select(list(places.values())).scatter(tuple(places), len(rows))
        cache = held.crop(self.cache.lengths.new_tensor(lengths))
        if state_layer is None or self.state_BTD is None:
            return Known(cache)
        state_BTD = self.state_BTD.new_zeros(len(rows), cache.tokens, self.state_BTD.shape[2])
        state_BTD[list(places)] = self.state_BTD[list(places.values()), : cache.tokens]
        return Known(cache, state_BTD)


class Sessions:
    """Open sessions by name, and those that have ended: what still runs or waits for one of these must stop.

    Calls come from several threads: each change is one step of a dictionary.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._open: dict[str, Kept] = {}
        self._ended: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str, kind: type[K] = Session) -> K:
        """Raises SessionLost where there is none of this kind."""
        held = self.find(name, kind)
        if held is None:
            raise SessionLost(
                f"{self.owner} holds no session {name!r}; it was released, timed out, or the member was restarted"
            )
        return held

    def find(self, name: str, kind: type[K] = Session) -> K | None:
        held = self._open.get(name)
        if not isinstance(held, kind):
            return None
        held.used_at = time.monotonic()
        return held

    def put(self, name: str, session: Kept) -> None:
        """Keep a session, unless it ended while its prompts were read. Raises SessionLost then."""
        self._drop(name)
        self._open[name] = session
        if name in self._ended:
            self._drop(name)
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
        self._drop(name)

    def _drop(self, name: str) -> None:
        held = self._open.pop(name, None)
        if held is not None:
            held.end()

    def forget(self) -> None:
        """Drop what nobody used for long."""
        oldest = time.monotonic() - TTL_S
        for name in [n for n, held in list(self._open.items()) if held.used_at < oldest]:
            self._drop(name)
        for name in [n for n, ended_at in list(self._ended.items()) if ended_at < oldest]:
            self._ended.pop(name, None)
