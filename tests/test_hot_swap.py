"""Versions change while requests are on their way: none fails, and each is answered by one version of everything."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shared_cluster import RECEIVER, SENDERS
from tiny import QUESTIONS, random_fuser, random_llm

from fedray import Federation
from fedray.errors import MemberFailed
from fedray.federation.serving import Serving
from fedray.llm.loading import describe, load
from fedray.protocols import replay
from fedray.protocols.group import Waited
from fedray.registry import service
from fedray.registry.aliases import ALIASES, draw
from fedray.registry.store import Registry
from fedray.runtime.actors import RayGroup
from fedray.types import Answer, Artifact, FedrayError, Plan, Request, Row

CHOICES = [("red", "green", "blue")] * len(QUESTIONS)
PAIRS = [f"{sender}--{RECEIVER}" for sender in SENDERS]
Version = dict[str, str]  # fuser -> hash


class Own:
    """A registry over the random zoo's with three versions of both fusers, and what is in service there."""

    def __init__(self, zoo: Path, root: Path) -> None:
        self.registry, self.root = Registry(root, zoo / "registry"), root
        self.versions: list[Version] = []
        infos = {name: describe(load(name, folder=zoo)) for name in (RECEIVER, *SENDERS)}
        for seed in (1, 2, 3):
            fusers = {s: random_fuser(random_llm(s), random_llm(RECEIVER), "concat", seed=seed) for s in SENDERS}
            made = [self.registry.add_fuser(f, infos[s], infos[RECEIVER], {}) for s, f in fusers.items()]
            self.versions.append({artifact.name: artifact.hash for artifact in made})

    def stable(self, number: int) -> None:
        for name, digest in self.versions[number].items():
            service.make_stable(self.registry, self.root, name, digest)

    def canary(self, number: int, share: float) -> None:
        for name, digest in self.versions[number].items():
            service.try_canary(self.registry, self.root, name, digest, share)

    def roll_back(self) -> None:
        for name in PAIRS:
            service.roll_back(self.registry, self.root, name)


@pytest.fixture(scope="module", params=["one process", "on Ray"])
def opened(
    request: pytest.FixtureRequest,
    random_federation: dict[str, Any],
    random_zoo: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Federation, Own]]:
    own = Own(random_zoo, tmp_path_factory.mktemp("own"))
    own.stable(0)
    values: dict[str, Any] = {**random_federation, "registry": {"path": own.root}, "ray": False}
    if request.param == "on Ray":
        request.getfixturevalue("cluster")
        values |= {"ray": True, "members": {name: {"num_cpus": 0.1} for name in (RECEIVER, *SENDERS)}}
    with Federation(**values) as fed:
        yield fed, own


@pytest.fixture
def own(opened: tuple[Federation, Own]) -> Own:
    return opened[1]


@pytest.fixture
def fed(opened: tuple[Federation, Own]) -> Federation:
    """The federation with the first version in service, whatever was before."""
    fed, own = opened
    (own.root / ALIASES).unlink()
    own.stable(0)
    fed.refresh()
    return fed


def asked(fed: Federation, **more: Any) -> Request:
    return fed.request(*QUESTIONS, choices=CHOICES, **more)


def holds(fed: Federation, *versions: Version) -> bool:
    """Whether the receiver soon holds the fusers of these versions, and no other."""
    wanted = {digest for version in versions for digest in version.values()}
    patience = time.monotonic() + 30
    while loaded(fed) != wanted and time.monotonic() < patience:  # an actor drops them when its turn comes
        time.sleep(0.05)
    return loaded(fed) == wanted


def loaded(fed: Federation) -> set[str]:
    group = fed._group
    if isinstance(group, RayGroup):
        import ray

        found: Any = ray.get(group._actors[RECEIVER].__ray_call__.remote(held))
        return found
    return held(group._members[RECEIVER])  # pyright: ignore[reportAttributeAccessIssue]


def held(member: Any) -> set[str]:
    return {digest for digest, _ in member._fusers}


def test_under_load_no_request_fails_and_none_is_answered_by_a_mixture(fed: Federation, own: Own) -> None:
    wanted: list[tuple[Row, ...]] = []
    for number in range(3):
        own.stable(number)
        assert fed.refresh() == fed.plan
        assert {a.name: a.hash for a in fed.plan.fusers.values()} == own.versions[number]
        wanted.append(fed.run(asked(fed)).rows)
    assert all(one != other for one, other in itertools.combinations(wanted, 2)), "else a mixture could not be told"
    answers: list[Answer | MemberFailed] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def one_by_one() -> None:
        while not done.is_set():
            answers.append(fed.run(asked(fed)))

    def together() -> None:
        while not done.is_set():
            answers.extend(fed.run_all([asked(fed) for _ in range(3)], at_a_time=2))

    def caught(ask: Any) -> None:
        try:
            ask()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=caught, args=(ask,)) for ask in (one_by_one, one_by_one, together)]
    for thread in threads:
        thread.start()
    counted: list[int] = []
    for turn in range(9):
        own.stable(turn % 3)
        if turn % 3 == 1:
            own.canary((turn + 1) % 3, 0.5)
        if turn % 3 == 2:
            own.roll_back()
        fed.refresh()
        counted.append(len(answers))
        while len(answers) < counted[-1] + 4 and not failures:  # some are answered between two changes
            done.wait(0.02)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures and not fed.missing
    assert len(answers) >= 36
    met = set()
    for answer in answers:
        assert isinstance(answer, Answer) and answer.senders == SENDERS
        number = own.versions.index(dict(answer.versions))
        assert answer.rows == wanted[number], f"not as version {number}"
        met.add(number)
    assert met == {0, 1, 2}
    own.stable(0)
    fed.refresh()
    assert holds(fed, own.versions[0]), "what nobody needs is dropped"


def test_the_canary_answers_its_share_by_the_requests_id(fed: Federation, own: Own) -> None:
    fed.run(asked(fed))
    own.canary(1, 0.3)
    before = fed.plan
    assert fed.run(asked(fed, id="request-0")).versions == own.versions[0], "not before the federation is told"
    plan = fed.refresh()
    assert plan == before and holds(fed, own.versions[0], own.versions[1])
    ids = [f"request-{number}" for number in range(8)]
    drawn = [draw(name) < 0.3 for name in ids]
    assert set(drawn) == {True, False}
    for name, canary in zip(ids, drawn, strict=True):
        assert fed.run(asked(fed, id=name)).versions == own.versions[canary]
        assert fed.run(asked(fed, id=name), plan).versions == own.versions[0], "a plan that is given stays"
        assert fed.plan_for() == plan
    met = {tuple(fed._serving.drawn(fed.request("?").id).fusers.values()) for _ in range(60)}
    assert len(met) == 2 == len({tuple(fed._serving.drawn(Request(("?",)).id).fusers.values()) for _ in range(60)})


def test_a_conversation_keeps_its_versions_and_a_stream_names_them(fed: Federation, own: Own) -> None:
    with fed.conversation() as talk:
        assert talk.say(QUESTIONS[0]).versions == own.versions[0]
        own.stable(1)
        fed.refresh()
        assert talk.say(QUESTIONS[1]).versions == own.versions[0]
        pieces = fed.stream(QUESTIONS[0])
        first = next(pieces)
        own.stable(2)
        fed.refresh()
        rest = list(pieces)
        assert fed.last and fed.last.versions == own.versions[1] and "".join((first, *rest)) == fed.last.text
        assert talk.say(QUESTIONS[1]).versions == own.versions[0]
    assert fed.ask(QUESTIONS[0]).versions == own.versions[2]
    own.stable(1)
    fed.refresh()
    assert holds(fed, own.versions[1])


def test_versions_that_cannot_be_served_change_nothing(
    fed: Federation, own: Own, request: pytest.FixtureRequest
) -> None:
    """Damaged before a federation looks: the stable one before is served. Gone from under it: it stays as it is."""
    plan, rows = fed.plan, fed.run(asked(fed)).rows
    own.stable(1)
    weights = own.root / PAIRS[0] / own.versions[1][PAIRS[0]] / "model.safetensors"
    whole = weights.read_bytes()
    os.truncate(weights, 100)
    request.addfinalizer(lambda: weights.write_bytes(whole))
    fed.refresh()
    mixed = {PAIRS[0]: own.versions[0][PAIRS[0]], PAIRS[1]: own.versions[1][PAIRS[1]]}
    assert fed.run(asked(fed)).versions == mixed
    weights.write_bytes(whole)
    fed.refresh()
    assert fed.run(asked(fed)).versions == own.versions[1], "mended, it is looked into anew"
    own.roll_back()
    fed.refresh()
    assert fed.plan == plan and fed.run(asked(fed)).rows == rows and holds(fed, own.versions[0])
    own.stable(1)
    os.truncate(weights, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedray.registry.store.check_weights", lambda *_: None)  # as if it were damaged a moment later
        with pytest.raises(
            FedrayError, match=r"versions in service stay, others cannot be loaded: qwen3-0.6b: .*damag"
        ):
            fed.refresh()
    assert fed.plan == plan and fed.run(asked(fed)).rows == rows
    assert holds(fed, own.versions[0])


class Noting:
    """A group that notes what it is asked, and fails where it is told to."""

    def __init__(self) -> None:
        self.members = {"r": None}
        self.asked: list[tuple[str, Any]] = []
        self.failing = False

    def start_all(self, member: str, method: str, *args: Any) -> list[str]:
        self.asked.append((method, args[0] if method == "drop" else set(_hashes(args[0]))))
        return [method]

    async def wait(self, handles: list[str], deadline: float | None = None) -> Waited:
        await asyncio.sleep(0)
        return Waited((), {0: "no room"}) if self.failing else Waited(tuple(range(len(handles))))

    def dropped(self) -> list[Any]:
        return [hashes for method, hashes in self.asked if method == "drop"]


def _hashes(plan: Plan) -> Iterator[str]:
    return (artifact.hash for artifact in plan.fusers.values())


def plan_of(digest: str, **others: str) -> Plan:
    return Plan("r", ("s",), fusers={name: Artifact(name, of, "") for name, of in {"s": digest, **others}.items()})


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, asyncio.Event]:
    """Requests that are answered when the event of their id is set."""
    go: dict[str, asyncio.Event] = {}

    async def run(request: Request, plan: Plan, group: Any) -> Answer:
        go[request.id] = asyncio.Event()
        await go[request.id].wait()
        return Answer((Row("?"),), plan.receiver, plan.senders)

    monkeypatch.setattr(replay, "protocol_of", lambda plan: SimpleNamespace(run=run, stream=None))
    return go


async def asking(serving: Serving, name: str) -> asyncio.Task[Answer]:
    task = asyncio.create_task(serving.answer(Request(("?",), id=name)))
    await asyncio.sleep(0)
    return task


def test_members_drop_a_version_when_its_last_request_is_answered(slow: Mapping[str, asyncio.Event]) -> None:
    async def scene() -> None:
        group = Noting()
        serving = Serving(group, ((1.0, plan_of("a", other="same")),))  # pyright: ignore[reportArgumentType]
        first, second = await asking(serving, "1"), await asking(serving, "2")
        await serving.switch(((1.0, plan_of("b", other="same")),))
        assert group.asked == [("prepare", {"b", "same"})], "nothing is dropped under a request"
        third = await asking(serving, "3")
        slow["1"].set()
        assert (await first).versions == {"s": "a", "other": "same"} and not group.dropped()
        slow["2"].set()
        await second
        assert group.dropped() == [{"a"}]
        slow["3"].set()
        assert (await third).versions == {"s": "b", "other": "same"} and group.dropped() == [{"a"}]
        await serving.switch(((0.5, plan_of("a")), (1.0, plan_of("b"))))
        assert group.dropped() == [{"a"}, {"same"}], "what comes back is kept"

    asyncio.run(scene())


def test_a_request_that_is_cancelled_holds_nothing(slow: Mapping[str, asyncio.Event]) -> None:
    async def scene() -> None:
        group = Noting()
        serving = Serving(group, ((1.0, plan_of("a")),))  # pyright: ignore[reportArgumentType]
        task = await asking(serving, "1")
        await serving.switch(((1.0, plan_of("b")),))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert group.dropped() == [{"a"}]

    asyncio.run(scene())


def test_what_cannot_be_loaded_is_dropped_again(slow: Mapping[str, asyncio.Event]) -> None:
    async def scene() -> None:
        group = Noting()
        serving = Serving(group, ((1.0, plan_of("a")),))  # pyright: ignore[reportArgumentType]
        group.failing = True
        with pytest.raises(FedrayError, match="the versions in service stay, others cannot be loaded: r: no room"):
            await serving.switch(((1.0, plan_of("b")),))
        assert serving.stable == plan_of("a") and group.dropped() == [{"b"}]

    asyncio.run(scene())
