"""A federation that many ask at once: each gets what it would get alone, and members keep nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from shared_cluster import SENDERS
from support.admitting import PATIENCE_S
from support.methods import revised
from tiny import QUESTIONS

from fedray import Federation
from fedray.errors import FederationBusy, MemberFailed
from fedray.federation.merging import merged
from fedray.types import Answer, FedrayError, Plan, Request, Talk


def got(future: Future[Answer]) -> str:
    return future.result(PATIENCE_S).text


@pytest.fixture(scope="module")
def here(random_federation: dict[str, Any], mixing: Path) -> Iterator[Federation]:
    with Federation(**random_federation, registry={"path": mixing}, ray=False) as fed:
        yield fed


PROMPTS = (*QUESTIONS, "hm?", " ".join(QUESTIONS), "which home has the star fatu?")
COLORS = (("red", "green", "blue"),)
ASKED: dict[str, Callable[[Federation, str], Request]] = {
    "answered freely": lambda fed, text: fed.request(text),
    "with choices": lambda fed, text: fed.request(text, choices=COLORS),
    "with documents": lambda fed, text: fed.request(text, evidence={SENDERS[0]: (f"the note of {text}",)}),
}
HOW: dict[str, Mapping[str, Any]] = {
    "open": {},
    "learned, lazy": {"gate": {"kind": "learned", "route": "lazy"}},
    "learned, eager": {"gate": {"kind": "learned", "route": "eager"}},
    "t2t": {"protocol": "t2t"},
    "alone": {"protocol": "standalone"},
}


def together(fed: Federation, asked: list[tuple[Request, Plan]]) -> tuple[list[Answer], list[int]]:
    """What requests submitted at once are answered, and the rows of each batch."""
    rows: list[int] = []
    work, front = fed._front._work, fed._front

    def noted(request: Request, plan: Plan) -> Any:
        rows.append(request.rows())
        return work(request, plan)

    front._work = noted
    try:
        with front._changed:
            futures = [fed.submit(request, plan) for request, plan in asked]
        return [future.result(PATIENCE_S) for future in futures], rows
    finally:
        front._work = work


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("how", HOW)
def test_each_caller_gets_what_it_would_get_alone(here: Federation, how: str, what: str) -> None:
    plan = here.plan_for(**HOW[how])
    asked = [ASKED[what](here, text) for text in PROMPTS]
    found, rows = together(here, [(request, plan) for request in asked])
    assert rows == [len(PROMPTS)]
    alone = [here.run(request, plan) for request in asked]
    for one, other in zip(found, alone, strict=True):
        assert [row.tokens for row in one.rows] == [row.tokens for row in other.rows]
        assert one.text == other.text and one.rows[0].choice == other.rows[0].choice
        assert one.rows[0].scores == pytest.approx(other.rows[0].scores, abs=1e-4)
        assert (one.senders, one.missing) == (other.senders, other.missing)
        assert one.usage.answer_tokens == other.usage.answer_tokens or how == "t2t"  # what senders said beside
        assert bool(one.usage.payload_bytes) == bool(other.usage.payload_bytes)
        assert one.usage.read_tokens.keys() >= other.usage.read_tokens.keys()
    whole = here.run(merged(asked, None), plan)
    assert sum(one.usage.payload_bytes for one in found) == whole.usage.payload_bytes
    assert sum(one.usage.prompt_tokens for one in found) == sum(one.usage.prompt_tokens for one in alone)


def test_plans_and_kinds_apart_are_answered_too(here: Federation) -> None:
    plans = [here.plan, here.plan_for(protocol="standalone")]
    asked = [(ask(here, text), plan) for text in QUESTIONS for ask in ASKED.values() for plan in plans]
    found, rows = together(here, asked)
    assert rows == [len(QUESTIONS)] * len(ASKED) * len(plans)
    for answer, (request, plan) in zip(found, asked, strict=True):
        assert answer.rows[0].tokens == here.run(request, plan).rows[0].tokens


def test_a_prompt_that_no_member_can_read_costs_no_other_its_answer(here: Federation) -> None:
    texts = [*QUESTIONS, "word " * 3000]
    with here._front._changed:
        *good, bad = [here.submit(text) for text in texts]
    assert [got(future) for future in good] == [here.ask(text).text for text in QUESTIONS]
    with pytest.raises(FedrayError, match="token"):
        bad.result(PATIENCE_S)


def sessions(fed: Federation) -> list[int]:
    return [member.stats()["sessions"] for member in fed._group._members.values()]  # pyright: ignore


def test_members_hold_nothing_of_what_was_taken_back(here: Federation) -> None:
    futures = [here.submit(text) for text in PROMPTS * 3]
    for future in futures[1::2]:
        future.cancel()
    left = [future.result(PATIENCE_S).text for future in futures if not future.cancelled()]
    assert len(left) >= len(futures) // 2
    cancelled = [here.submit(text) for text in PROMPTS]
    for future in cancelled:
        future.cancel()
    assert got(here.submit(PROMPTS[0])) == left[0]  # behind all of them
    assert sessions(here) == [0, 0, 0] and len(here._front._admission) == 0


def test_a_member_that_fails_is_told_to_its_callers_alone(here: Federation) -> None:
    plan = revised(here.plan, on_missing="error")
    member = here._group._members[SENDERS[0]]  # pyright: ignore
    prefill = member.prefill

    def failing(session: str, rows: Any, prompts: tuple[str, ...], *rest: Any) -> Any:
        if any("note of hm?" in prompt for prompt in prompts):
            raise RuntimeError("this one I cannot read")
        return prefill(session, rows, prompts, *rest)

    member.prefill = failing
    try:
        asked = [(ASKED["with documents"](here, text), plan) for text in PROMPTS]
        with here._front._changed:
            futures = {request.prompts[0]: here.submit(request, plan) for request, plan in asked}
        with pytest.raises(MemberFailed, match="this one I cannot read"):
            futures.pop("hm?").result(PATIENCE_S)
        assert all(future.result(PATIENCE_S).senders == SENDERS for future in futures.values())
    finally:
        del member.prefill
    assert sessions(here) == [0, 0, 0]


def test_what_is_submitted_is_checked(here: Federation) -> None:
    with pytest.raises(FedrayError, match="the prompt is empty"):
        here.submit(" ")
    with pytest.raises(FedrayError, match=r"deadline_s must be at least 0.001, got 0"):
        here.submit(QUESTIONS[0], deadline_s=0)
    with pytest.raises(FedrayError, match="holds no conversation"):
        here.submit(here.request(QUESTIONS[0], talk=Talk()), here.plan_for(protocol="t2t"))


def test_settings_bound_what_is_admitted(random_federation: dict[str, Any]) -> None:
    admitted = {"kv_mb": 1.0, "quota": 2}
    with Federation(**random_federation, protocol="standalone", ray=False, admission=admitted) as fed:
        with fed._front._changed:
            futures = [fed.submit(QUESTIONS[0], tenant="a") for _ in range(2)]
            with pytest.raises(FederationBusy, match="its quota"):
                fed.submit(QUESTIONS[0], tenant="a")
            futures.append(fed.submit(QUESTIONS[0], tenant="b"))
            with pytest.raises(FedrayError, match=r"admission.kv_mb=1 is less"):
                fed.submit(fed.request(*(QUESTIONS * 400)))
        assert len({future.result(PATIENCE_S).text for future in futures}) == 1
        assert fed.last is not None and fed.last.text == futures[-1].result().text
    with pytest.raises(FedrayError, match="closed"):
        fed.submit(QUESTIONS[0])
    with pytest.raises(FedrayError, match=r"admission.quota must be at least 1, got 0"):
        Federation(**random_federation, admission={"quota": 0})
