"""Answers with other rows' messages: those of a second request whose senders read the other questions."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from support.methods import method
from tiny import QUESTIONS, random_fuser, random_llm, random_member

from fedray.llm.loading import describe
from fedray.member.member import Member
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.registry.store import Registry
from fedray.types import Answer, FedrayError, Generation, Plan, Request
from fedray.wire.payload import unpack
from fedray.wire.repairing import repaired

RECEIVER, SENDERS = "qwen3-0.6b", ("llama-1b", "qwen2.5-1.5b")
PROMPTS = (*QUESTIONS, "which size has the star lopa?")
WAYS = ((1, 2, 3, 0), (3, 0, 1, 2))
WEIGHTS = {SENDERS[0]: (1.0, 0.0, 0.5, 0.0), SENDERS[1]: (0.0, 0.7, 1.0, 0.0)}
LAZY = {"kind": "oracle", "route": "lazy"}
REQUEST = Request(PROMPTS, generation=Generation(max_tokens=8), weights=WEIGHTS, donors=WAYS)
CHOOSING = replace(REQUEST, choices=(("red", "blue and tall", "calm"),) * len(PROMPTS))


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({name: random_member(name) for name in (RECEIVER, *SENDERS)})


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    registry = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    llms = {name: random_llm(name) for name in (RECEIVER, *SENDERS)}
    fusers = {
        s: registry.add_fuser(
            random_fuser(llms[s], llms[RECEIVER], "concat"), describe(llms[s]), describe(llms[RECEIVER]), {}
        )
        for s in SENDERS
    }
    return Plan(RECEIVER, SENDERS, method(gate="oracle"), fusers=fusers)


def ask(group: LocalGroup, plan: Plan, request: Request) -> Answer:
    return asyncio.run(PROTOCOLS[plan.method.protocol.name](request, plan, group))


def asked_anew(way: tuple[int, ...]) -> Request:
    return replace(REQUEST, donors=(), asked=dict.fromkeys(SENDERS, tuple(PROMPTS[d] for d in way)))


@pytest.mark.parametrize("changes", [
    {}, {"gate": LAZY}, {"wire": "int8"}, {"wire": {"keep": 0.5}}, {"fusion": {"read": "prompt"}},
    {"fusion": {"read": "prompt", "slots": "inline"}}, {"protocol": "t2t"},
    {"protocol": "t2t", "t2t": {"gate": "same"}},
], ids=str)  # fmt: skip
def test_deranged_rows_are_those_of_senders_that_read_the_donors(group, plan, changes):
    plan = replace(plan, method=method(**{"gate": "oracle", **changes}))
    answer = ask(group, plan, CHOOSING)
    assert len(answer.deranged) == len(WAYS)
    for way, rows in zip(WAYS, answer.deranged, strict=True):
        wanted = ask(group, plan, replace(asked_anew(way), choices=CHOOSING.choices))
        for row, other, own in zip(rows, wanted.rows, answer.rows, strict=True):
            assert row.scores == pytest.approx(other.scores, abs=1e-4)
            assert row.weights == own.weights
        changed = [
            row.scores != pytest.approx(own.scores, abs=1e-3) for row, own in zip(rows, answer.rows, strict=True)
        ]
        heard = [any(weights) or not plan.method.weighs for weights in zip(*WEIGHTS.values(), strict=True)]
        assert changed == heard
    answer = ask(group, plan, REQUEST)
    plain = ask(group, plan, replace(REQUEST, donors=()))
    assert plain.rows == answer.rows and plain.senders == answer.senders, "the answer is what it was"
    assert plain.usage.payload_bytes == answer.usage.payload_bytes
    assert plain.usage.read_tokens == answer.usage.read_tokens


def test_free_answers_are_decoded_anew(group, plan):
    for way, rows in zip(WAYS, ask(group, plan, REQUEST).deranged, strict=True):
        assert [row.tokens for row in rows] == [row.tokens for row in ask(group, plan, asked_anew(way)).rows]


def test_nothing_is_read_twice(group, plan, monkeypatch):
    read: list[tuple[str, int]] = []
    original = Member._read

    def counted(self, session, rows, *more, **named):
        read.extend((self.name, row) for row in rows)
        return original(self, session, rows, *more, **named)

    monkeypatch.setattr(Member, "_read", counted)
    for gate in ("oracle", LAZY):
        read.clear()
        ask(group, replace(plan, method=method(gate=gate)), REQUEST)
        assert len(read) == len(set(read)), gate


def test_where_nobody_is_heard_nothing_changes(group, plan):
    closed = replace(REQUEST, weights=dict.fromkeys(SENDERS, (0.0,) * len(PROMPTS)))
    answer = ask(group, plan, closed)
    assert answer.deranged == (answer.rows,) * len(WAYS)


def test_a_sender_that_fails_meanwhile_costs_the_answer_nothing(group, plan, monkeypatch):
    plain = ask(group, plan, replace(REQUEST, donors=()))
    original, calls = Member.share, []

    def once(self, session, rows, **named):
        calls.append(self.name)
        if calls.count(self.name) > 1:
            raise RuntimeError("out of memory")
        return original(self, session, rows, **named)

    once.ships = True
    monkeypatch.setattr(Member, "share", once)
    for how in ("alone", "error"):
        calls.clear()
        answer = ask(group, replace(plan, method=method(gate="oracle", on_missing=how)), REQUEST)
        assert answer.deranged == () and not answer.missing
        assert answer.rows == plain.rows
        assert [m.stats()["sessions"] for m in group._members.values()] == [0, 0, 0]


def test_repaired_tokens_are_the_donors(group):
    member = group._members[SENDERS[0]]
    parts = [
        unpack(member.share("repair", rows, prompts=tuple(PROMPTS[b] for b in rows), spans=True)[1])
        for rows in ((0, 2), (1, 3))
    ]
    whole = unpack(member.share("repair", (0, 1, 2, 3), prompts=PROMPTS, spans=True)[1])
    found, donors = repaired(parts, {0: 3, 1: 1, 3: 1}), (3, 1, 1)
    assert found.rows == (0, 1, 3)
    assert found.lengths == found.whole == tuple(whole.lengths[d] for d in donors)
    assert found.spans == tuple(whole.spans[d] for d in donors)
    for b, d in enumerate(donors):
        length = whole.lengths[d]
        for got, want in zip(found.cache.keys, whole.cache.keys, strict=True):
            torch.testing.assert_close(got[b, :, :length], want[d, :, :length], atol=1e-5, rtol=0)
    assert repaired(parts[:1], {0: 1, 2: 2}).rows == (2,), "nobody sent row 1"
    member.release("repair")


@pytest.mark.parametrize("ways", [((0, 1),), ((0, 1, 2, 4),), ((-1, 0, 1, 2),)])
def test_donors_are_rows_of_the_request(ways):
    with pytest.raises(FedrayError, match="donors must name a row"):
        replace(REQUEST, donors=ways)
