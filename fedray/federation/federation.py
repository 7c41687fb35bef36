"""Federation: LLMs that answer together, from Python. The jobs are thin over it.

>>> with Federation(receiver="qwen3-0.6b", senders=["llama-1b"]) as fed:
...     fed.ask("what is the color of the bird dika?").text
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.text import Text

from fedray.errors import FederationBusy, MemberFailed, unknown
from fedray.federation import prepare, sources
from fedray.federation.admission import Admission
from fedray.federation.conversation import Conversation
from fedray.federation.dispatcher import Dispatcher
from fedray.federation.event_loop import Background
from fedray.federation.serving import Levels, Serving
from fedray.methods.method import Method, with_fusion
from fedray.protocols import METHOD, STANDALONE, protocol_of, replay
from fedray.registry.planner import Planner
from fedray.schema import changed, check_range
from fedray.settings.check import check
from fedray.settings.settings import Settings, build
from fedray.text import check_text
from fedray.types import Answer, FedrayError, Health, MemberInfo, Missing, Plan, Request

STATS_S = 5.0  # a member that computes answers what it takes beside it; one that is gone does not


class Federation:
    """A receiver and its senders, loaded and planned for.

    settings: a Settings, or its fields as keywords: Federation(receiver="llama-1b", gate="open", ray=False). Raises
    FedrayError before anything expensive starts where the settings cannot be meant, and where a member cannot load.
    Calls are synchronous and work in a notebook too: protocols run in a thread of their own.
    """

    def __init__(self, settings: Settings | None = None, **overrides: Any) -> None:
        self.settings = _settings(settings, overrides)
        check(self.settings)
        s = self.settings
        self._evidence = s.documents()
        self._passed_over: set[Path] = set()
        self._refreshing = Lock()
        self._planner = self._planner_of_now()
        for _, served in self._planner.levels():
            self._check_registry(self._planner.serving(served), s.receiver, s.takes_part[1:], s.method)
        found = sources.pinned(sources.sources(s))
        protocol_of(s).check_sources(s, found)
        self.last: Answer | None = None  # the latest answer, a streamed one included
        self._missing: dict[str, Missing] = {}
        with ExitStack() as stack:
            start = prepare.start_on_ray if s.ray.enabled else prepare.start_here
            self._group, self._plan, self._meters = start(s, found, stack)
            self._serving = Serving(self._group, self._levels(self._planner))
            self._loop = Background()
            stack.callback(self._loop.close)
            self._front = Dispatcher(
                Admission(prepare.limits(s), self.members), self._loop, self._serving.answer, self._told
            )
            stack.callback(self._front.close)
            self._loop.run(self._serving.prepare(self._serving.levels))  # what fails fails by name in the first request
            self._loop.start(self._group.watch())
            self._resources = stack.pop_all()

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """Who takes part and where it runs, the receiver first."""
        return self._group.members

    @property
    def plan(self) -> Plan:
        """The plan of the stable versions, by which requests are answered but for a canary's share."""
        return self._serving.stable

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Members that some answer had to do without, each with its latest reason."""
        return tuple(self._missing.values())

    def health(self) -> dict[str, Health]:
        """Which members can be asked now. On Ray one that died is started anew, and used again once it answers."""
        return self._group.health()

    def drain(self, member: str, within_s: float = 60.0) -> None:
        """End a member on Ray once the requests are answered that it takes part in, or after so many seconds. Later
        requests name it as missing."""
        if member not in self.members:
            raise unknown("member", member, self.members)
        self._loop.run(self._group.drain(member, time.monotonic() + within_s))

    def refresh(self) -> Plan:
        """Put the versions into service that the registry and its aliases name now; returns the stable ones' plan.

        Receivers load them beforehand. Requests on their way, and conversations, keep the plan they began with; plans
        of `plan_for` stay as they are. Raises FedrayError, and changes nothing, where there is none for a pair, or one
        cannot be loaded.
        """
        with self._refreshing:
            planner = self._planner_of_now()
            self._loop.run(self._serving.switch(self._levels(planner)))
            self._planner = planner
        return self.plan

    def _planner_of_now(self) -> Planner:
        """A planner that has looked into nothing yet."""
        return Planner(self.settings.registry.path, self.settings.zoo.path, self.settings.zoo.name)

    def _levels(self, planner: Planner) -> Levels:
        """The federation's own plans for every share of the traffic; equal ones are one."""
        s, plans = self.settings, list[tuple[float, Plan]]()
        for upto, served in planner.levels():
            plan = self._made(planner.serving(served), s.receiver, self._others(s.receiver), s.method, s.seed)
            plans = [*(level for level in plans if level[1] != plan), (upto, plan)]
        return tuple(plans)

    def _others(self, receiver: str) -> list[str]:
        return [name for name in self.members if name != receiver]

    def _made(self, planner: Planner, receiver: str, senders: Sequence[str], method: Method, seed: int) -> Plan:
        self._check_registry(planner, receiver, senders, method)
        return self._plan(planner, self.members[receiver], [self.members[s] for s in senders], method, seed)

    def _check_registry(self, planner: Planner, receiver: str, senders: Sequence[str], method: Method) -> None:
        """Look for the fusers and gates of a plan, and name once what is passed over. Raises FedrayError."""
        planner.check(receiver, senders, method)
        for folder, problem in planner.problems.items():
            if folder not in self._passed_over:
                Console(stderr=True).print(Text(f"passed over: {problem}"), soft_wrap=True)
                self._passed_over.add(folder)

    def request(self, *prompts: str, choices: Sequence[Sequence[str]] | None = None, **more: Any) -> Request:
        """A request with this federation's evidence, generation settings and deadline; more: fields of Request.

        Raises FedrayError on an empty prompt.
        """
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise FedrayError("the prompt is empty: ask something")
        for text in (*prompts, *(choice for row in choices or () for choice in row)):
            check_text(text, f"{text[:40]!r}")
        own: dict[str, Any] = {
            "evidence": {member: (document,) * len(prompts) for member, document in self._evidence.items()},
            "generation": self.settings.generation,
            "deadline_s": self.settings.deadline_s,
            "id": f"request-{uuid.uuid4().hex[:12]}",
        }
        return Request(prompts, None if choices is None else tuple(map(tuple, choices)), **{**own, **more})

    def plan_for(
        self,
        receiver: str | None = None,
        senders: Sequence[str] | None = None,
        method: Method | None = None,
        seed: int | None = None,
        **changes: Any,
    ) -> Plan:
        """Plan anew for the members that are here: other roles, another method.

        method: by default the settings'; changes: parts of it, as on the command line (protocol="t2t", gate="open").
        Raises FedrayError.
        """
        method = method or self.settings.method
        if changes:
            anew = {"fusion": changes.get("fusion")} if "fuser" in changes else {}
            method = METHOD.read(with_fusion({**changed(method, changes), **anew}))
        names = list(self.members)
        receiver = receiver or self.settings.receiver
        senders = self._others(receiver) if senders is None else senders
        absent = [n for n in (receiver, *senders) if n not in names]
        if absent:
            raise FedrayError(f"{absent[0]} is not in this federation: load it with senders=[{absent[0]}, ...]")
        seed = self.settings.seed if seed is None else seed
        stable = self._planner.serving(self._planner.levels()[-1][1])
        return self._made(stable, receiver, senders, method, seed)

    def ask(self, prompt: str, plan: Plan | None = None) -> Answer:
        """The federation's answer to one prompt."""
        return self.run(self.request(prompt), plan)

    def stream(self, prompt: str, plan: Plan | None = None) -> Iterator[str]:
        """The answer's text piece by piece; `last` holds the whole Answer after the final piece."""
        if protocol_of(plan or self.plan).stream is None or (plan or self.plan).peers:  # its answer comes as a whole
            yield self.ask(prompt, plan).text
            return
        for piece in self._pieces(self.request(prompt), plan):
            if isinstance(piece, str):
                yield piece

    def conversation(self, plan: Plan | None = None) -> Conversation:
        """Turns that build on each other, of which members read only what is new (conversation.py); by the federation's
        own plan or by another of `plan_for`.

        Raises FedrayError where the protocol, or what goes with it, holds none.
        """
        plan = plan or self._serving.drawn()
        protocol_of(plan).check_talk(plan)
        run, pieces = partial(self.run, plan=plan), partial(self._pieces, plan=plan)
        return Conversation(self.request, run, pieces, self._release)

    def run(self, request: Request, plan: Plan | None = None) -> Answer:
        """The federation's answer to a batch of prompts, by its own plan or by another of `plan_for`.

        Where a canary is tried, the request's id draws whether it answers; `versions` of the answer says what did.
        """
        if request.talk:
            protocol_of(plan or self.plan).check_talk(plan or self.plan)
        try:
            return self._keep(self._loop.run(self._serving.answer(request, plan)))
        except FedrayError as error:
            self._told(error)
            raise

    def submit(
        self,
        asked: str | Request,
        plan: Plan | None = None,
        *,
        tenant: str = "",
        deadline_s: float | None = None,
    ) -> Future[Answer]:
        """Ask beside many others, from any thread: the answer comes in time, or it is refused.

        asked: a prompt, or a `request`; tenant: who asks, each of whom has a fair share; deadline_s: seconds from now
        on, by default the request's. Requests of one kind are answered in one batch, with the answers that each would
        have alone; its `usage` is its share (merging.py), with the seconds of the batch and those of the `wait`.
        Cancelling the future takes a request back, also from members that work for it alone.

        Raises FederationBusy, with `retry_after_s`, where the request does not fit beside the others or will not be
        answered by its deadline; the future has it where the deadline passes later. Raises FedrayError where the
        request cannot be meant, or is too large at any time.
        """
        request = self.request(asked) if isinstance(asked, str) else asked
        if deadline_s is not None:
            check_range("deadline_s", deadline_s, 0.001)
            request = replace(request, deadline_s=deadline_s)
        check_text(tenant, "tenant")
        plan = plan or self._serving.drawn(request.id)
        if request.talk:
            protocol_of(plan).check_talk(plan)
        try:
            return self._front.submit(request, plan, tenant)
        except FedrayError as error:
            self._told(error, tenant)
            raise

    def run_all(
        self, requests: Iterable[Request], plan: Plan | None = None, at_a_time: int | None = None
    ) -> Iterator[Answer | MemberFailed]:
        """The answers to many batches, in their order: senders read the next ones while the receiver answers one.

        at_a_time: batches on their way together, by default as the settings say; requests are taken when they begin. A
        batch that fails has its error in place of its answer, and the others go on.

        The answers are those of `run`. Where batches overlap their seconds are not: a batch's `total` is from its
        beginning to its answer, and it and `transfer` hold what it waited while a member worked for another one. What
        members measure themselves (prefill, fuse, decode, ...) holds no waiting, but other members use the same cores
        meanwhile. What a question takes on its own is measured one at a time (at_a_time=1, a request each).
        """
        at_a_time = at_a_time or self.settings.batches_at_a_time
        if at_a_time == 1:
            asked = (partial(self.run, request, plan) for request in requests)
        else:
            works = (self._serving.answer(request, plan) for request in requests)
            asked = (future.result for future in self._loop.in_order(works, at_a_time))
        for answer_of in asked:
            try:
                answer = self._keep(answer_of())
            except MemberFailed as error:
                answer = error
            yield answer

    def alone(self, request: Request) -> Answer:
        """The receiver's own answer to the same batch: what the federation is compared with."""
        return self._loop.run(replay.run(self.own_part(request), self.plan, self._group, STANDALONE))

    def own_part(self, request: Request) -> Request:
        """What of a request the receiver is asked alone."""
        return protocol_of(self.plan).alone(request, self.plan)

    def memory(self) -> dict[str, int]:
        """Member -> the most bytes it has held at a time, of its process and of its GPU; who does not answer is left
        out. In one process all members share one figure."""
        asked = {name: self._group.start(name, "stats") for name in self.members}
        waited = self._loop.run(self._group.wait(list(asked.values()), time.monotonic() + STATS_S))
        answered = [list(asked)[index] for index in waited.ready]
        stats = {name: self._group.result(asked[name]) for name in answered}
        return {name: int(s["rss_bytes"] + s["device_bytes"]) for name, s in stats.items()}

    def close(self) -> None:
        """End the members, and the cluster if it is this federation's own. Closing twice is fine."""
        self._resources.close()

    def __enter__(self) -> Federation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(self, request: Request, plan: Plan | None) -> Iterator[str | Answer]:
        """Pieces of text, then the Answer."""
        for piece in self._loop.iterate(self._serving.stream(request, plan)):
            yield self._keep(piece) if isinstance(piece, Answer) else piece

    def _release(self, session: str) -> None:
        """Let members drop a conversation."""
        if not self._loop.closed:
            self._group.release(session, self.members)

    def _keep(self, answer: Answer, tenant: str = "") -> Answer:
        self.last = answer
        self._missing |= {missing.member: missing for missing in answer.missing}
        if self._meters is not None:
            self._meters.answered(answer, tenant)
        return answer

    def _told(self, outcome: Answer | BaseException, tenant: str = "") -> None:
        """Take note of what a caller is told."""
        if isinstance(outcome, Answer):
            self._keep(outcome, tenant)
        elif self._meters is not None:
            self._meters.not_answered("refused" if isinstance(outcome, FederationBusy) else "failed", tenant)


def _settings(settings: Settings | None, overrides: Mapping[str, Any]) -> Settings:
    if settings is None:
        return build(overrides)
    if not overrides:
        return settings
    return build(changed(settings, overrides))
