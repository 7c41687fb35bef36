"""What members reply beside caches: receipts, answers, texts, lengths, distributions. A false one costs its sender."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hostile import LONG, UGLY
from participants import federation, logits, plan_of
from speculating import DRAFT, WORKERS
from speculating import REQUEST as TOLD
from speculating import plan as specfed_plan
from support.methods import method
from tiny import QUESTIONS, random_fuser, random_llm, random_member

from fedray.llm.loading import describe
from fedray.member.member import Member
from fedray.methods.fedattn import FedAttn
from fedray.methods.method import T2T
from fedray.methods.specfed import SpecFed
from fedray.protocols import PROTOCOLS, protocol_of
from fedray.protocols.group import LocalGroup
from fedray.registry.planner import Planner
from fedray.registry.store import Registry
from fedray.types import Answer, Generation, Opening, Plan, Receipt, Request, Row, Talk, Usage
from fedray.wire.payload import Payload

RECEIVER, BAD, GOOD = EVERYONE = ("qwen3-0.6b", "llama-1b", "qwen2.5-1.5b")
REQUEST = Request(QUESTIONS, generation=Generation(max_tokens=6))
CHOICES = replace(REQUEST, choices=(("red", "blue and tall", "calm"),) * len(QUESTIONS))


class Liar(Member):
    """lies: method -> what it makes of the honest reply."""

    lies: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        lie = super().__getattribute__("lies").get(name)
        if lie is None:
            return found

        def lying(*args: Any, **kwargs: Any) -> Any:
            return lie(found(*args, **kwargs))

        lying.ships = getattr(found, "ships", False)  # pyright: ignore[reportFunctionMemberAccess]
        return lying


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    members = {name: random_member(name) for name in (RECEIVER, GOOD)}
    return LocalGroup({RECEIVER: members[RECEIVER], BAD: Liar(BAD, llm=random_llm(BAD)), GOOD: members[GOOD]})


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    registry = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    for sender in EVERYONE:
        for receiver in EVERYONE:
            if sender != receiver:
                one, two = random_llm(sender), random_llm(receiver)
                registry.add_fuser(random_fuser(one, two, "concat"), describe(one), describe(two), {})
    assert registry.path
    return Planner(registry.path, zoo=registry.path / "nowhere")


def plan(planner: Planner, protocol: str, senders: tuple[str, ...] = (BAD, GOOD), **choices: Any) -> Plan:
    infos, usual = [describe(random_llm(name)) for name in senders], {"gate": "open", "t2t": {"max_tokens": 8}}
    return planner.plan(describe(random_llm(RECEIVER)), infos, method(protocol=protocol, **{**usual, **choices}))


def ask(
    group: LocalGroup, one: Plan, request: Request = REQUEST, lies: dict[str, Callable[[Any], Any]] | None = None
) -> Answer:
    group._members[BAD].lies = lies or {}  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return asyncio.run(protocol_of(one).run(request, one, group))
    finally:
        group._members[BAD].lies = {}  # pyright: ignore[reportAttributeAccessIssue]


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


def rows(change: Callable[[Row], Any]) -> Callable[[Answer], Answer]:
    return lambda answer: replace(answer, rows=tuple(map(change, answer.rows)))


def usage(**fields: Any) -> Callable[[Any], Any]:
    return lambda reply: replace(reply, usage=replace(reply.usage, **fields))


REPLIES: dict[str, Callable[[Any], Any]] = {
    "None": lambda reply: None,
    "another type": lambda reply: "an answer",
    "no rows": lambda answer: replace(answer, rows=()),
    "a row too few": lambda answer: replace(answer, rows=answer.rows[:-1]),
    "a row too many": lambda answer: replace(answer, rows=(*answer.rows, answer.rows[0])),
    "rows of another type": lambda answer: replace(answer, rows=("red",) * len(answer.rows)),
    "no usage": lambda answer: replace(answer, usage=None),
    "NaN seconds": usage(seconds={"prefill": math.nan}),
    "endless seconds": usage(seconds={"prefill": math.inf}),
    "seconds in words": usage(seconds={"prefill": "long"}),
    "seconds of no name": usage(seconds={7: 1.0}),
    "a thousand phases": usage(seconds={f"phase {i}": 1.0 for i in range(1000)}),
    "bytes below zero": usage(payload_bytes=-1),
    "too many bytes": usage(payload_bytes=10**30),
    "tokens in words": usage(read_tokens={BAD: "many"}),
}
TEXTS = {
    "a text of None": rows(lambda row: replace(row, text=None)),
    "a text of bytes": rows(lambda row: replace(row, text=b"red")),
    "weights in words": rows(lambda row: replace(row, weights={"me": "all"})),
}
SCORES = {
    "NaN": rows(lambda row: replace(row, scores=(math.nan,) * 3)),
    "endless": rows(lambda row: replace(row, scores=(math.inf, -math.inf, math.nan))),
    "nothing likely": rows(lambda row: replace(row, scores=(-math.inf,) * 3)),
    "a score too few": rows(lambda row: replace(row, scores=row.scores[:2])),
    "scores in words": rows(lambda row: replace(row, scores=("high", "low", "low"))),
    "no choice": rows(lambda row: replace(row, choice=None)),
    "a choice beyond": rows(lambda row: replace(row, choice=3)),
    "a choice below": rows(lambda row: replace(row, choice=-1)),
}


@pytest.fixture(scope="module")
def heard(group: LocalGroup, planner: Planner) -> dict[tuple[str, ...], Answer]:
    """What text gives by the senders that are heard."""
    return {senders: ask(group, plan(planner, "t2t", senders)) for senders in ((BAD, GOOD), (GOOD,))}


@pytest.mark.parametrize("lie", [*REPLIES, *TEXTS])
def test_a_false_hint_is_not_heard(
    group: LocalGroup, planner: Planner, heard: dict[tuple[str, ...], Answer], lie: str
) -> None:
    answer = ask(group, plan(planner, "t2t"), lies={"alone": (REPLIES | TEXTS)[lie]})
    assert [missing.member for missing in answer.missing] == [BAD] and answer.senders == (GOOD,)
    assert tokens(answer) == tokens(heard[GOOD,]) != tokens(heard[BAD, GOOD])
    assert all(math.isfinite(s) for s in answer.usage.seconds.values())


@pytest.fixture(scope="module")
def one_voice(group: LocalGroup, planner: Planner) -> Answer:
    return ask(group, plan(planner, "ensemble", (GOOD,)), CHOICES)


@pytest.mark.parametrize("lie", SCORES)
def test_a_false_score_has_no_voice(group: LocalGroup, planner: Planner, one_voice: Answer, lie: str) -> None:
    answer, wanted = ask(group, plan(planner, "ensemble"), CHOICES, {"alone": SCORES[lie]}), one_voice
    assert [missing.member for missing in answer.missing] == [BAD]
    assert [row.scores for row in answer.rows] == [row.scores for row in wanted.rows]


@pytest.mark.parametrize("lie", ["None", "a row too few", "a text of None"])
def test_a_false_answer_is_not_returned(group: LocalGroup, planner: Planner, lie: str) -> None:
    one = plan(planner, "route", gate="oracle")
    request = replace(REQUEST, weights={BAD: (1.0,) * 3, GOOD: (0.0,) * 3})
    answer = ask(group, one, request, {"alone": (REPLIES | TEXTS)[lie]})
    assert [missing.member for missing in answer.missing] == [BAD]
    assert tokens(answer) == tokens(ask(group, plan(planner, "standalone")))


def test_long_and_ugly_words_are_cut_and_cleaned(group: LocalGroup, planner: Planner) -> None:
    """A member's answer is another's text: it is shown, kept in files, and read by the receiver."""
    request = replace(REQUEST, weights={BAD: (1.0,) * 3, GOOD: (0.0,) * 3})
    lies = {"alone": rows(lambda row: replace(row, text=UGLY + "long " * (LONG // 5)))}
    routed = ask(group, plan(planner, "route", gate="oracle"), request, lies)
    assert not routed.missing
    for row in routed.rows:
        assert row.text.startswith("[31mred[0m  txt.exe long long") and row.text.endswith("…") and len(row.text) < 1000
        assert row.text.isprintable() and row.text.encode()


@pytest.mark.parametrize("text", ["why? " * (LONG // 5), "\N{PILE OF POO}" * 10_000])
def test_a_hint_that_fills_the_receivers_context_is_left_out(group: LocalGroup, planner: Planner, text: str) -> None:
    """And no other hint with it; what fits, though it is long, is heard."""
    t2t = T2T(max_tokens=32)
    lies = {"alone": rows(lambda row: replace(row, text=text))}
    answer = ask(group, plan(planner, "t2t", t2t=t2t), lies=lies)
    assert [missing.member for missing in answer.missing] == [BAD] and "does not fit" in answer.missing[0].reason
    assert tokens(answer) == tokens(ask(group, plan(planner, "t2t", (GOOD,), t2t=t2t)))
    lies = {"alone": rows(lambda row: replace(row, text=text[:40]))}
    heard = ask(group, plan(planner, "t2t", t2t=t2t), lies=lies)
    assert not heard.missing and tokens(heard) != tokens(answer)


BOTH_WAYS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "an answer of None": {"answer": lambda reply: None},
    "a row too few": {"answer": REPLIES["a row too few"]},
    "rows of another type": {"answer": REPLIES["rows of another type"]},
    "NaN seconds": {"answer": REPLIES["NaN seconds"]},
    "no weights": {"open": lambda opening: Opening((), opening.usage)},
    "weights of another type": {"open": lambda opening: Opening("all", opening.usage)},  # pyright: ignore
    "an opening of None": {"open": lambda opening: None},
    "usage in words": {"open": lambda opening: Opening(opening.weights, "much")},  # pyright: ignore
}


@pytest.mark.parametrize("lie", BOTH_WAYS)
@pytest.mark.parametrize("vote", [False, True])
def test_where_everybody_answers_a_false_answer_is_left_out(
    group: LocalGroup, planner: Planner, lie: str, vote: bool
) -> None:
    both = plan(planner, "c2c", answer_all=True, vote=vote)
    answer = ask(group, both, CHOICES, BOTH_WAYS[lie])
    assert {missing.member for missing in answer.missing} == {BAD}
    assert list(answer.by_member) == [RECEIVER, GOOD]
    heard = "answer" in BOTH_WAYS[lie] or "weights" in lie  # it is no receiver, and a sender all the same
    wanted = ask(group, plan(planner, "c2c", (BAD, GOOD) if heard else (GOOD,)), CHOICES)
    assert [row.scores for row in answer.by_member[RECEIVER]] == [row.scores for row in wanted.rows]


def test_a_conversation_that_a_sender_claims_to_have_lost_is_read_again(group: LocalGroup, planner: Planner) -> None:
    from fedray.errors import SessionLost

    def losing(reply: Any) -> Any:
        raise SessionLost(UGLY * 1000)

    talk = Talk((("hello", "red"),) * 3, "talk", frozenset({BAD}))
    with pytest.raises(SessionLost) as caught:
        ask(group, plan(planner, "c2c"), replace(REQUEST, talk=talk), {"prefill": losing})
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 500
    again = replace(REQUEST, talk=Talk((("hello", "red"),) * 3, "again"))
    answer = ask(group, plan(planner, "c2c"), again, {"prefill": losing})
    assert [missing.member for missing in answer.missing] == [BAD] and answer.senders == (GOOD,)


def test_tokens_are_told_of_oneself_alone(group: LocalGroup, planner: Planner) -> None:
    """Else a sender could make others look as if they held a conversation."""
    answer = ask(group, plan(planner, "c2c"), lies={"prefill": usage(read_tokens={GOOD: 10**6, BAD: 5})})
    honest = ask(group, plan(planner, "c2c"))
    assert answer.usage.read_tokens == {**honest.usage.read_tokens, BAD: 5}


# -- FedAttn ----------------------------------------------------------------------------------------------------------

FIRST, SECOND = "qwen3-0.6b#2", "qwen3-0.6b#3"


def participants(lies: dict[str, Callable[[Any], Any]]) -> LocalGroup:
    group = federation(random_llm("qwen3-0.6b"), 3, Liar)
    group._members[FIRST].lies = lies  # pyright: ignore[reportAttributeAccessIssue]
    return group


def sending(change: Callable[[Payload], Any]) -> Callable[[Any], Any]:
    return lambda given: (given[0], change(given[1]))


def huge(payload: Payload) -> Payload:
    buffers = tuple(buffer.copy() for buffer in payload.buffers)
    for buffer in buffers:
        buffer.view("float32")[:] = 1e38
    return Payload(payload.header, buffers)


ROWS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "None": {"begin": sending(lambda payload: None)},
    "no payload": {"begin": sending(lambda payload: {"header": payload})},
    "no receipt": {"begin": lambda given: (None, given[1])},
    "nothing": {"begin": lambda given: None},
    "all 1e38": {"begin": sending(huge)},
    "another's name": {"begin": sending(lambda p: Payload(p.header.replace(b"#2", b"#3"), p.buffers))},
    "lengths in words": {"hold": lambda receipt: replace(receipt, lengths=("long",))},
    "no lengths": {"hold": lambda receipt: Receipt(receipt.member, Usage())},
    "a length of nothing": {"hold": lambda receipt: replace(receipt, lengths=(0,))},
    "lengths without end": {"hold": lambda receipt: replace(receipt, lengths=(10**9,))},
    "lengths beyond the context": {"hold": lambda receipt: replace(receipt, lengths=(500,))},
}


@pytest.mark.parametrize("lie", ROWS)
def test_a_participant_costs_itself_alone(lie: str) -> None:
    from participants import ONE

    group = participants(ROWS[lie])
    answer = asyncio.run(PROTOCOLS["fedattn"].run(ONE, plan_of(group, FedAttn(3, 2)), group))
    assert [missing.member for missing in answer.missing] == [FIRST] and answer.senders == (SECOND,)
    assert len(answer.rows) == 1 and logits(group).isfinite().all()  # pyright: ignore[reportArgumentType]


# -- SpecFed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speculating() -> LocalGroup:
    return LocalGroup({DRAFT: Member(DRAFT), WORKERS[0]: Liar(WORKERS[0]), WORKERS[1]: Member(WORKERS[1])})


DISTRIBUTIONS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "None": {"verify": sending(lambda payload: None)},
    "no payload": {"verify": sending(lambda payload: 7)},
    "a None buffer": {"verify": sending(lambda p: Payload(p.header, (None, *p.buffers[1:])))},  # pyright: ignore
    "a text for a header": {"verify": sending(lambda p: Payload("FRTK", p.buffers))},  # pyright: ignore
    "all entries": {"verify": sending(lambda p: replace(p, header=p.header[:14] + p.header[10:14] + p.header[18:]))},
    "a vocabulary without end": {
        "verify": sending(lambda p: replace(p, header=p.header[:10] + b"\0\0\0\x7f" + p.header[14:]))
    },
    "no receipt": {"verify": lambda given: (None, given[1])},
    "nothing": {"verify": lambda given: None},
    "lengths in words": {"prefill": lambda receipt: replace(receipt, lengths=("long",) * 4)},
    "lengths without end": {"prefill": lambda receipt: replace(receipt, lengths=(10**9,) * 4)},
    "a length too few": {"prefill": lambda receipt: replace(receipt, lengths=receipt.lengths[:-1])},
}
HOW = SpecFed(top_k=0.1)


@pytest.fixture(scope="module")
def one_worker(speculating: LocalGroup) -> Answer:
    return asyncio.run(PROTOCOLS["specfed"].run(TOLD, specfed_plan(WORKERS[1:], HOW), speculating))


@pytest.mark.parametrize("lie", DISTRIBUTIONS)
def test_a_worker_costs_itself_alone(speculating: LocalGroup, one_worker: Answer, lie: str) -> None:
    liar = speculating._members[WORKERS[0]]
    liar.lies = DISTRIBUTIONS[lie]  # pyright: ignore[reportAttributeAccessIssue]
    answer = asyncio.run(PROTOCOLS["specfed"].run(TOLD, specfed_plan(how=HOW), speculating))
    assert [missing.member for missing in answer.missing] == [WORKERS[0]] and answer.senders == WORKERS[1:]
    assert tokens(answer) == tokens(one_worker)


def test_a_round_in_which_only_a_false_worker_answers_is_no_end(speculating: LocalGroup, one_worker: Answer) -> None:
    """The other is late in the first round; its distributions are of the same drafts."""

    class Waiting(LocalGroup):
        late: Any = None

        def start(self, member: str, method: str, *args: Any, **kwargs: Any) -> Any:
            done = super().start(member, method, *args, **kwargs)
            if (member, method) == (WORKERS[1], "verify") and self.late is None:
                self.late, done.done_at = done, math.inf
            return done

        async def wait(self, handles: Any, deadline: float | None = None) -> Any:
            if self.late is not None and list(handles) == [self.late]:
                self.late.done_at = 0.0
            return await super().wait(handles, deadline)

    liar = speculating._members[WORKERS[0]]
    liar.lies = DISTRIBUTIONS["None"]  # pyright: ignore[reportAttributeAccessIssue]
    for gamma in (0, 4):
        how = replace(HOW, gamma=gamma, patience_s=60.0)
        answer = asyncio.run(PROTOCOLS["specfed"].run(TOLD, specfed_plan(how=how), Waiting(speculating._members)))
        assert WORKERS[0] in {missing.member for missing in answer.missing} and answer.senders == WORKERS[1:]
        assert tokens(answer) == tokens(one_worker)
