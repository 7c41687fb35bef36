"""Which plan answers a request, and how another set of plans takes over while requests are on their way.

Each request is answered by one plan from its beginning to its end, so by one version of every fuser and gate. All of
this runs on the federation's event loop, one step at a time.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace

from fedray.protocols import replay
from fedray.protocols.group import Group
from fedray.registry.aliases import draw
from fedray.types import UNNAMED, Answer, Artifact, FedrayError, Plan, Request

Levels = tuple[tuple[float, Plan], ...]  # share of the traffic up to which each plan answers; the last is stable alone


class Serving:
    """The plans in service. A request's own is drawn by its id, always the same while the plans are."""

    def __init__(self, group: Group, levels: Levels) -> None:
        self._group, self.levels = group, levels
        self._held: Counter[str] = Counter()  # parts of requests on their way, by hash
        self._retired: set[str] = set()  # parts that have been in service, and are not now
        self._dropping: set[str] = set()  # those of them that members may still hold

    @property
    def stable(self) -> Plan:
        return self.levels[-1][1]

    def drawn(self, request: str = UNNAMED) -> Plan:
        """Draw the plan of a request; one without an id of its own is drawn for anew each time."""
        at = draw(uuid.uuid4().hex if request == UNNAMED else request)
        return next(plan for upto, plan in self.levels if at < upto)

    async def answer(self, request: Request, plan: Plan | None = None) -> Answer:
        """Answer a request by a plan, its own by default, and name the versions."""
        with self._holding(request, plan) as held:
            answer = await replay.run(request, held, self._group)
            return replace(answer, versions=versions_of(held))

    async def stream(self, request: Request, plan: Plan | None = None) -> AsyncGenerator[str | Answer]:
        """Yield pieces of the answer's text, then the Answer."""
        with self._holding(request, plan) as held:
            async with aclosing(replay.stream(request, held, self._group)) as pieces:
                async for piece in pieces:
                    yield replace(piece, versions=versions_of(held)) if isinstance(piece, Answer) else piece

    async def prepare(self, levels: Levels) -> list[str]:
        """Let receivers load the fusers and gates of plans; returns why some could not."""
        plans = [plan for _, level in levels for plan in (level, *level.peers)]
        plans = [plan for plan in plans if plan.fusers or plan.gate_artifact]
        asked = [(plan.receiver, h) for plan in plans for h in self._group.start_all(plan.receiver, "prepare", plan)]
        failed = (await self._group.wait([handle for _, handle in asked])).failed
        return [f"{asked[index][0]}: {reason}" for index, reason in failed.items()]

    async def switch(self, levels: Levels) -> None:
        """Put other plans into service once their parts are loaded, and drop those of the plans before that nobody
        needs. Raises FedrayError where one cannot be loaded; then all stays as it was.
        """
        new, old = _parts(levels), _parts(self.levels)
        self._retired -= new
        self._dropping -= new
        try:
            failed = await self.prepare(levels)
            self.levels = self.levels if failed else levels
        finally:
            self._retired |= (new | old) - _parts(self.levels)
            self._dropping = set(self._retired)  # an older one may have been loaded again, for an older plan
            self._drop()
        if failed:
            raise FedrayError(f"the versions in service stay, others cannot be loaded: {'; '.join(failed)}")

    @contextmanager
    def _holding(self, request: Request, plan: Plan | None) -> Iterator[Plan]:
        plan = plan or self.drawn(request.id)
        parts = _parts_of(plan)
        self._held.update(parts)
        try:
            yield plan
        finally:
            self._held.subtract(parts)
            self._held = +self._held
            self._drop()

    def _drop(self) -> None:
        """Let members drop what nobody needs any longer; who needs it all the same loads it again."""
        if gone := frozenset(self._dropping - self._held.keys()):
            self._dropping -= gone
            for member in self._group.members:
                self._group.start_all(member, "drop", gone)


def versions_of(plan: Plan) -> dict[str, str]:
    """Name the versions that a plan answers by: of each fuser and gate its hash."""
    return {artifact.name: artifact.hash for artifact in _artifacts(plan)}


def _artifacts(plan: Plan) -> Sequence[Artifact]:
    own = (*plan.fusers.values(), *((plan.gate_artifact,) if plan.gate_artifact else ()))
    return (*own, *(artifact for peer in plan.peers for artifact in _artifacts(peer)))


def _parts_of(plan: Plan) -> set[str]:
    """Hashes of all that members hold for a plan."""
    return {artifact.hash for artifact in (*_artifacts(plan), *plan.soft_prompts.values())}


def _parts(levels: Levels) -> set[str]:
    return {digest for _, plan in levels for digest in _parts_of(plan)}
