"""Identity tests of the protocols beside c2c: what is closed or settled changes nothing, and opening it does."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
from support.methods import method
from tiny import QUESTIONS, random_fuser, random_llm, random_member

from fedray.llm.loading import describe
from fedray.methods.method import T2T, ProtocolSettings, SelfRefine
from fedray.prompts import notes_prompt
from fedray.protocols import protocol_of
from fedray.protocols.group import LocalGroup
from fedray.registry.planner import Planner
from fedray.registry.store import Registry
from fedray.text import printable
from fedray.types import Answer, FedrayError, Generation, Plan, Request

RECEIVER, SENDERS = "qwen3-0.6b", ("llama-1b", "qwen2.5-1.5b")
EVERYONE = (RECEIVER, *SENDERS)
REQUEST = Request(QUESTIONS, generation=Generation(max_tokens=6))
CHOICES = replace(REQUEST, choices=(("red", "blue and tall", "calm"),) * len(QUESTIONS))
ALL_ROWS = len(QUESTIONS)


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({name: random_member(name) for name in EVERYONE})


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    """Concat fusers for all pairs of the three."""
    registry = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    for sender in EVERYONE:
        for receiver in EVERYONE:
            if sender != receiver:
                one, two = random_llm(sender), random_llm(receiver)
                registry.add_fuser(random_fuser(one, two, "concat"), describe(one), describe(two), {})
    assert registry.path
    return Planner(registry.path, zoo=registry.path / "nowhere")


def plan(planner: Planner, protocol: str | ProtocolSettings, receiver: str = RECEIVER, **choices: Any) -> Plan:
    senders = [describe(random_llm(name)) for name in EVERYONE if name != receiver]
    return planner.plan(
        describe(random_llm(receiver)), senders, method(protocol=protocol, **{"gate": "open", **choices})
    )


def ask(group: LocalGroup, plan: Plan, request: Request = REQUEST) -> Answer:
    return asyncio.run(protocol_of(plan).run(request, plan, group))


def alone(group: LocalGroup, request: Request = REQUEST, member: str = RECEIVER) -> Answer:
    return ask(group, Plan(member, (), method(protocol="standalone")), request)


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


NOTHING = (0.0,) * ALL_ROWS


def weighed(one: tuple[float, ...] = NOTHING, two: tuple[float, ...] = NOTHING, receiver: Any = NOTHING) -> Request:
    """The request with the weights of both senders, and of the receiver for where it is one."""
    return replace(REQUEST, weights=dict(zip((*SENDERS, RECEIVER), (one, two, receiver), strict=True)))


SHUT = weighed()


@pytest.mark.parametrize("protocol", ["c2c", "t2t", "route"])
def test_nobody_with_weight_is_the_receiver_alone(group, planner, protocol):
    one = plan(planner, protocol, gate="oracle", t2t=T2T(gate="same"))
    answer = ask(group, one, SHUT)
    assert tokens(answer) == tokens(alone(group))
    assert answer.senders == () and answer.usage.payload_bytes == 0
    wide = weighed((1.0,) * ALL_ROWS)
    assert tokens(ask(group, one, wide)) != tokens(answer), "a sender with weight must change the answer"


def test_text_is_read_as_notes(group, planner):
    """t2t as published equals the receiver alone on a prompt that quotes every sender, in the senders' order."""
    answer = ask(group, plan(planner, "t2t", t2t=T2T(max_tokens=5)))
    spoken = replace(REQUEST, generation=Generation(max_tokens=5))
    said = [[printable(row.text) for row in alone(group, spoken, s).rows] for s in SENDERS]
    prompts = tuple(notes_prompt([words[b] for words in said], q) for b, q in enumerate(QUESTIONS))
    assert tokens(answer) == tokens(alone(group, replace(REQUEST, prompts=prompts)))
    assert answer.senders == SENDERS
    assert answer.usage.payload_bytes == sum(len(text.encode()) for words in said for text in words)


def test_a_full_budget_is_used_up(group, planner):
    """With t2t.full every sender says exactly max_tokens tokens, whether its answer has ended or not."""
    member = group._members[SENDERS[0]]
    stops = member.llm.stop_ids
    request = replace(REQUEST, generation=Generation(max_tokens=40, temperature=1.0, full=True))
    rows = member.alone("full", request).rows
    assert [len(row.tokens) for row in rows] == [40] * ALL_ROWS
    ended = member.alone("ends", replace(request, generation=replace(request.generation, full=False))).rows
    assert all(not stops & set(row.tokens) for row in ended)


def test_a_settled_answer_is_not_revised(group, planner):
    answer = ask(group, plan(planner, SelfRefine(1)))
    first = alone(group)
    prompts = tuple(notes_prompt([row.text], q) for row, q in zip(first.rows, QUESTIONS, strict=True))
    assert tokens(answer) == tokens(alone(group, replace(REQUEST, prompts=prompts)))
    many = ask(group, plan(planner, SelfRefine(20)), CHOICES)
    again = ask(group, plan(planner, SelfRefine(21)), CHOICES)
    assert tokens(many) == tokens(again) and many.usage.prompt_tokens == again.usage.prompt_tokens


def test_a_route_is_one_members_own_answer(group, planner):
    answer = ask(group, plan(planner, "route", gate="oracle"), weighed((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    wanted = [alone(group, member=m).rows[b].tokens for b, m in enumerate((*SENDERS, RECEIVER))]
    assert tokens(answer) == wanted and answer.senders == SENDERS
    assert answer.rows[0].weights == dict(zip(SENDERS, (1.0, 0.0), strict=True))


def test_an_ensemble_averages_probabilities(group, planner):
    answer = ask(group, plan(planner, "ensemble"), CHOICES)
    scores = [[row.scores for row in alone(group, CHOICES, m).rows] for m in EVERYONE]
    for b, row in enumerate(answer.rows):
        shares = [[math.exp(s) / sum(map(math.exp, member[b])) for s in member[b]] for member in scores]
        mean = [sum(column) / len(EVERYONE) for column in zip(*shares, strict=True)]
        assert row.choice == mean.index(max(mean))
        assert [math.exp(s) for s in row.scores] == pytest.approx(mean)
    with pytest.raises(FedrayError, match="have choices"):
        ask(group, plan(planner, "ensemble"))


def test_both_ways_is_every_member_as_receiver(group, planner):
    open_sessions = [m.stats()["sessions"] for m in group._members.values()]
    answer = ask(group, plan(planner, "c2c", answer_all=True))
    assert [m.stats()["sessions"] for m in group._members.values()] == open_sessions
    assert list(answer.by_member) == list(EVERYONE)
    for member, rows in answer.by_member.items():
        one_way = ask(group, plan(planner, "c2c", receiver=member))
        assert [row.tokens for row in rows] == tokens(one_way) != tokens(alone(group, member=member))
    assert answer.rows == answer.by_member[RECEIVER]


def test_both_ways_gives_everybody_the_weights_of_its_own_senders(group, planner):
    """gate=oracle: of three members each fuses the caches of the two others with the weights of those two."""
    request = weighed((1.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 1.0))
    answer = ask(group, plan(planner, "c2c", answer_all=True, gate="oracle"), request)
    for member, rows in answer.by_member.items():
        one_way = ask(group, plan(planner, "c2c", receiver=member, gate="oracle"), request)
        assert [row.tokens for row in rows] == tokens(one_way)
        assert [row.weights for row in rows] == [
            {name: request.weights[name][b] for name in EVERYONE if name != member} for b in range(ALL_ROWS)
        ]


def test_both_ways_everybody_reads_the_same(group, planner):
    both = plan(planner, "c2c", answer_all=True)
    other = {SENDERS[0]: ("something else",) * ALL_ROWS}
    for request in (replace(REQUEST, asked=other), replace(REQUEST, evidence=other)):
        with pytest.raises(FedrayError, match="same prompt"):
            ask(group, both, request)


def test_both_ways_reads_every_prompt_once(group, planner, monkeypatch):
    read: list[str] = []
    for name, member in group._members.items():
        inner = member._read
        monkeypatch.setattr(member, "_read", lambda *a, n=name, f=inner: (read.append(n), f(*a))[1])
    ask(group, plan(planner, "c2c", answer_all=True))
    assert sorted(read) == sorted(EVERYONE)


def test_a_vote_is_the_majoritys(group, planner):
    answer = ask(group, plan(planner, "c2c", answer_all=True, vote=True), CHOICES)
    for b, row in enumerate(answer.rows):
        votes = [rows[b].choice for rows in answer.by_member.values()]
        best = max(votes, key=votes.count)
        assert votes.count(row.choice) == votes.count(best)


def test_evidence_is_read_by_its_member_alone(group, planner, monkeypatch):
    read: dict[str, set[str]] = {}
    for name, member in group._members.items():
        inner = member._read

        def spy(session: str, rows: Any, prompts: tuple[str, ...], *rest: Any, n: str = name, f: Any = inner) -> None:
            read.setdefault(n, set()).update(prompts)
            f(session, rows, prompts, *rest)

        monkeypatch.setattr(member, "_read", spy)
    document = "the color of the bird dika is gold."
    request = replace(REQUEST, evidence={SENDERS[0]: (document, "", "")})
    for protocol in ("c2c", "t2t", "route", "ensemble"):
        one = plan(planner, protocol)
        with_it = ask(group, one, CHOICES if protocol == "ensemble" else request)
        assert protocol == "ensemble" or tokens(with_it)[0] != tokens(ask(group, one))[0]
    assert read[SENDERS[0]] >= {notes_prompt([document], QUESTIONS[0]), *QUESTIONS[1:]}
    assert not any(document in text for name in (RECEIVER, SENDERS[1]) for text in read[name])


@pytest.mark.parametrize(
    ("rephrase", "protocol"), [("distinct", "t2t"), ("distinct", "route"), ("distinct", "ensemble"), ("shared", "c2c")]
)
def test_what_cannot_be_rephrased_reaches_no_sender(group, planner, monkeypatch, protocol, rephrase):
    """Random weights say nothing faithful: every row falls back to the receiver alone, and no sender is asked."""
    for sender in SENDERS:
        monkeypatch.setattr(group._members[sender], "_read", _never)
    request = CHOICES if protocol == "ensemble" else REQUEST
    answer = ask(group, plan(planner, protocol, rephrase=rephrase), request)
    assert list(answer.unrephrased) == [0, 1, 2] and all(answer.unrephrased.values()), "every row says what was wrong"
    assert set(answer.read) == set(SENDERS) and not any(text for read in answer.read.values() for text in read)
    assert [row.text for row in answer.rows] == [row.text for row in alone(group, request).rows]


def _never(*args: Any) -> None:
    raise AssertionError("a sender was asked")
