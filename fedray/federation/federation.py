"""Federation: LLMs that answer together, from Python. The jobs are thin over it.

>>> with Federation(receiver="qwen3-0.6b", senders=["llama-1b"]) as fed:
...     fed.ask("what is the color of the bird dika?").text
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from fedray.errors import MemberFailed
from fedray.federation import sources
from fedray.federation.admission import Admission, Limits
from fedray.federation.conversation import Conversation
from fedray.federation.dispatcher import Dispatcher
from fedray.federation.estimate import Room, check_room, needs, shares_weights, this_machine
from fedray.federation.event_loop import Background
from fedray.llm.memory import MIB
from fedray.llm.source import Source
from fedray.methods.method import Method, with_fusion
from fedray.protocols import METHOD, STANDALONE, protocol_of
from fedray.protocols.group import Group, LocalGroup
from fedray.registry.planner import Planner
from fedray.schema import attributes, changed, check_range
from fedray.settings.check import check
from fedray.settings.settings import Settings, build
from fedray.text import check_text
from fedray.types import Answer, FedrayError, MemberInfo, Missing, Plan, Request

if TYPE_CHECKING:
    from fedray.runtime.placement import Placement

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
        self._planner = Planner(s.registry.path, s.zoo.path, s.zoo.name)
        self._passed_over: set[Path] = set()
        self._check_registry(s.receiver, s.takes_part[1:], s.method)
        found = sources.pinned(sources.sources(s))
        protocol_of(s).check_sources(s, found)
        self.last: Answer | None = None  # the latest answer, a streamed one included
        self._missing: dict[str, Missing] = {}
        with ExitStack() as stack:
            start = _start_on_ray if s.ray.enabled else _start_here
            self._group, self._plan = start(s, found, stack, self._planner)
            self.plan = self.plan_for()
            self._loop = Background()
            stack.callback(self._loop.close)
            self._front = Dispatcher(Admission(_limits(s), self.members), self._loop, self._work, self._keep)
            stack.callback(self._front.close)
            self._prepare()
            self._resources = stack.pop_all()

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """Who takes part and where it runs, the receiver first."""
        return self._group.members

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Members that some answer had to do without, each with its latest reason."""
        return tuple(self._missing.values())

    def _check_registry(self, receiver: str, senders: Sequence[str], method: Method) -> None:
        """Look for the fusers and gates of a plan, and name once what is passed over. Raises FedrayError."""
        self._planner.check(receiver, senders, method)
        for folder, problem in self._planner.problems.items():
            if folder not in self._passed_over:
                Console(stderr=True).print(Text(f"passed over: {problem}"), soft_wrap=True)
                self._passed_over.add(folder)

    def _prepare(self) -> None:
        """Let receivers load their fusers and gate now. What fails here fails again, by name, in the first request."""
        plans = [plan for plan in (self.plan, *self.plan.peers) if plan.fusers or plan.gate_artifact]
        self._loop.run(self._group.wait([self._group.start(plan.receiver, "prepare", plan) for plan in plans]))

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
        senders = [n for n in names if n != receiver] if senders is None else senders
        absent = [n for n in (receiver, *senders) if n not in names]
        if absent:
            raise FedrayError(f"{absent[0]} is not in this federation: load it with senders=[{absent[0]}, ...]")
        self._check_registry(receiver, senders, method)
        seed = self.settings.seed if seed is None else seed
        return self._plan(self.members[receiver], [self.members[s] for s in senders], method, seed)

    def ask(self, prompt: str) -> Answer:
        """The federation's answer to one prompt."""
        return self.run(self.request(prompt))

    def stream(self, prompt: str) -> Iterator[str]:
        """The answer's text piece by piece; `last` holds the whole Answer after the final piece."""
        if protocol_of(self.plan).stream is None or self.plan.peers:  # its answer comes as a whole
            yield self.ask(prompt).text
            return
        for piece in self._pieces(self.request(prompt), self.plan):
            if isinstance(piece, str):
                yield piece

    def conversation(self, plan: Plan | None = None) -> Conversation:
        """Turns that build on each other, of which members read only what is new (conversation.py); by the federation's
        own plan or by another of `plan_for`.

        Raises FedrayError where the protocol, or what goes with it, holds none.
        """
        plan = plan or self.plan
        protocol_of(plan).check_talk(plan)
        run, pieces = partial(self.run, plan=plan), partial(self._pieces, plan=plan)
        return Conversation(self.request, run, pieces, self._release)

    def run(self, request: Request, plan: Plan | None = None) -> Answer:
        """The federation's answer to a batch of prompts, by its own plan or by another of `plan_for`."""
        plan = plan or self.plan
        if request.talk:
            protocol_of(plan).check_talk(plan)
        return self._keep(self._loop.run(self._work(request, plan)))

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
        plan = plan or self.plan
        request = self.request(asked) if isinstance(asked, str) else asked
        if deadline_s is not None:
            check_range("deadline_s", deadline_s, 0.001)
            request = replace(request, deadline_s=deadline_s)
        if request.talk:
            protocol_of(plan).check_talk(plan)
        return self._front.submit(request, plan, tenant)

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
        plan, at_a_time = plan or self.plan, at_a_time or self.settings.batches_at_a_time
        if at_a_time == 1:
            asked = (partial(self.run, request, plan) for request in requests)
        else:
            works = (self._work(request, plan) for request in requests)
            asked = (future.result for future in self._loop.in_order(works, at_a_time))
        for answer_of in asked:
            try:
                answer = self._keep(answer_of())
            except MemberFailed as error:
                answer = error
            yield answer

    def alone(self, request: Request) -> Answer:
        """The receiver's own answer to the same batch: what the federation is compared with."""
        return self._loop.run(STANDALONE.run(self.own_part(request), self.plan, self._group))

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

    def _work(self, request: Request, plan: Plan) -> Coroutine[Any, Any, Answer]:
        return protocol_of(plan).run(request, plan, self._group)

    def _pieces(self, request: Request, plan: Plan) -> Iterator[str | Answer]:
        """Pieces of text, then the Answer."""
        stream = protocol_of(plan).stream
        assert stream is not None, "asked before"
        pieces = stream(request, plan, self._group)
        for piece in self._loop.iterate(pieces):
            yield self._keep(piece) if isinstance(piece, Answer) else piece

    def _release(self, session: str) -> None:
        """Let members drop a conversation."""
        if not self._loop.closed:
            self._group.release(session, self.members)

    def _keep(self, answer: Answer) -> Answer:
        self.last = answer
        self._missing |= {missing.member: missing for missing in answer.missing}
        return answer


def _settings(settings: Settings | None, overrides: Mapping[str, Any]) -> Settings:
    if settings is None:
        return build(overrides)
    if not overrides:
        return settings
    return build(changed(settings, overrides))


def _limits(s: Settings) -> Limits:
    """How much is admitted. What the senders of all batches send lies in the object store at a time."""
    size, sent = (mb * MIB for mb in (s.admission.kv_mb, s.ray.object_store_mb / s.batches_at_a_time))
    return Limits(size, sent if s.ray.enabled else size, s.admission.quota, s.task.batch_size, s.batches_at_a_time)


MakePlan = Callable[[MemberInfo, Sequence[MemberInfo], Method, int], Plan]


def _start_here(s: Settings, found: Mapping[str, Source], stack: ExitStack, planner: Planner) -> tuple[Group, MakePlan]:
    """All members in this process, one after the other: transformers does not load two at a time."""
    from fedray.member.member import Member

    _check_room(s, found, this_machine())
    sources.download(list(found.values()))
    members: dict[str, Member] = {}
    devices = sources.devices(s)
    with sources.loading(len(found)) as loaded:
        for name, device in devices.items():
            source = found[name]
            twin = members[source.llm] if shares_weights(s, name, devices) else None
            members[name] = Member(
                name,
                zoo=s.zoo.name,
                device=device,
                dtype=s.member(name).dtype,
                folder=s.zoo.path,
                revision=source.revision,
                prompting=source.prompting,
                llm=twin and replace(twin.llm, name=name),
            )
            loaded(name)
    return LocalGroup(members), planner.plan


def _start_on_ray(
    s: Settings, found: Mapping[str, Source], stack: ExitStack, planner: Planner
) -> tuple[Group, MakePlan]:
    """Each member in an actor of its own, on a cluster that is there or on one of our own."""
    check_ray()
    from fedray.runtime import actors, cluster, coordinator, placement

    wanted = placements(s, found)
    embedding = cluster.will_embed(s.ray.address)
    if embedding:  # refused, and downloaded, before Ray starts
        placement.place(wanted, nodes=[placement.this_machine(s.ray.num_cpus)])
        _check_room(s, found, this_machine())
        sources.download(list(found.values()))
    with Console(stderr=True).status("starting Ray"):
        connection = cluster.connect(s.ray.address, **s.ray.of_cluster)
    stack.callback(connection.close)
    placed = placement.place(wanted, all_cores=connection.is_embedded)
    if not embedding:
        _check_room(s, found, Room(int(sum(node.memory_bytes for node in placement.alive_nodes()))))
    zoo = sources.absolute(s.zoo.path)
    boss = coordinator.start(sources.absolute(s.registry.path), zoo, s.zoo.name)
    stack.callback(coordinator.stop, boss)
    with sources.loading(len(found)) as loaded:
        group = actors.load_members(
            placed, zoo=s.zoo.name, folder=zoo, loaded=lambda info: loaded(info.name), slow=sources.say
        )
    stack.callback(group.close)

    def plan(receiver: MemberInfo, senders: Sequence[MemberInfo], method: Method, seed: int) -> Plan:
        return coordinator.plan(boss, receiver, senders, method, seed, planner.problems)

    return group, plan


def placements(s: Settings, found: Mapping[str, Source]) -> list[Placement]:
    """What each member asks Ray for, the receiver first."""
    from fedray.runtime.placement import Placement

    pinned = {n: attributes(source, "revision", "prompting") for n, source in found.items()}
    return [Placement(n, **sources.resources(s, n), **of) for n, of in pinned.items()]


def check_ray() -> None:
    """Raises FedrayError where Ray is not installed."""
    if find_spec("ray") is None:
        raise FedrayError("Ray is not installed: pip install 'fedray[ray]', or leave it out with ray.enabled=false")


def _check_room(s: Settings, found: Mapping[str, Source], room: Room) -> None:
    """Refuse LLMs and fusers that are too large, whatever is asked of them; the scale model fits everywhere."""
    if s.zoo.name != "tiny":
        check_room(needs(s, found, sources.devices(s)), room, together=not s.ray.enabled)
