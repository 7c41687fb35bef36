"""Peers cannot cost a request: whatever one sends, the answer is as without it, and it is named."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hostile import LONG, SENT, UGLY, UNTOLD, Hostile
from support.methods import method
from tiny import QUESTIONS, random_fuser, random_llm, random_member

from fedray.llm.loading import describe
from fedray.protocols import PROTOCOLS, protocol_of
from fedray.protocols.group import LocalGroup
from fedray.registry.store import Registry
from fedray.reporting import report as reports
from fedray.reporting.report import Report, Who
from fedray.text import printable
from fedray.types import REASON, Answer, Generation, Missing, Plan, Request

RECEIVER, BAD, GOOD = "qwen3-0.6b", "llama-1b", "qwen2.5-1.5b"
REQUEST = Request((*QUESTIONS, "hm?"), generation=Generation(max_tokens=6))
REFUSED = [how for how in SENT if how not in (*UNTOLD, "x 100", "unpicklable")]  # without a record of training


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    members = {name: random_member(name) for name in (RECEIVER, GOOD)}
    return LocalGroup({**members, BAD: Hostile(BAD, llm=random_llm(BAD))})


@pytest.fixture(scope="module", params=["concat", "mix"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    registry = Registry(tmp_path_factory.mktemp("registry"), embedded=None)
    receiver = random_llm(RECEIVER)
    fusers = {}
    for name in (BAD, GOOD):
        fuser = random_fuser(random_llm(name), receiver, request.param)
        fusers[name] = registry.add_fuser(fuser, describe(random_llm(name)), describe(receiver), {})
    contexts = {name: random_llm(name).context for name in (BAD, GOOD)}
    return Plan(RECEIVER, (BAD, GOOD), method(gate="open", fusion=request.param), fusers=fusers, contexts=contexts)


def ask(group: LocalGroup, plan: Plan, how: str = "", request: Request = REQUEST) -> Answer:
    group._members[BAD].how = how  # pyright: ignore[reportAttributeAccessIssue]
    return asyncio.run(protocol_of(plan).run(request, plan, group))


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


@pytest.fixture(scope="module")
def without(group: LocalGroup, plan: Plan) -> Answer:
    return ask(group, replace(plan, senders=(GOOD,)))


@pytest.mark.parametrize("how", [*REFUSED, "ugly error", "no receipt"])
def test_what_a_sender_sends_costs_nobody_else(group: LocalGroup, plan: Plan, without: Answer, how: str) -> None:
    answer = ask(group, plan, how)
    assert [missing.member for missing in answer.missing] == [BAD] and answer.senders == (GOOD,)
    assert tokens(answer) == tokens(without) != tokens(ask(group, plan))
    (reason,) = (missing.reason for missing in answer.missing)
    assert reason and len(reason) <= REASON and reason.isprintable(), reason
    assert BAD in reason or how in ("all 1e38", "all 3e4", "ugly error"), "the call's sender is named, not the header's"


def test_a_stream_goes_on_without_it(group: LocalGroup, plan: Plan, without: Answer) -> None:
    async def pieces() -> list[str | Answer]:
        return [piece async for piece in PROTOCOLS["c2c"].stream(REQUEST.select([0]), plan, group)]

    group._members[BAD].how = "depth bomb header"  # pyright: ignore[reportAttributeAccessIssue]
    *texts, answer = asyncio.run(pieces())
    assert isinstance(answer, Answer) and "".join(map(str, texts)) == answer.text
    assert [missing.member for missing in answer.missing] == [BAD] and tokens(answer) == tokens(without)[:1]


def test_what_no_statistics_tell_apart_passes(group: LocalGroup, plan: Plan, without: Answer) -> None:
    for how in UNTOLD:
        answer = ask(group, plan, how)
        assert not answer.missing and answer.senders == (BAD, GOOD)
        assert tokens(answer) != tokens(without)


def test_all_senders_at_once_leave_the_receiver_alone(group: LocalGroup, plan: Plan) -> None:
    one = replace(plan, senders=(BAD,))
    alone = asyncio.run(PROTOCOLS["standalone"].run(REQUEST, one, group))
    for how in ("depth bomb header", "None", "all 1e38"):
        assert tokens(ask(group, one, how)) == tokens(alone)


def test_a_report_takes_what_a_sender_said(group: LocalGroup, plan: Plan, tmp_path: Path) -> None:
    """A surrogate made the file impossible to write."""
    missing = ask(group, plan, "ugly error").missing
    report = Report("federate", "tiny", seed=0, status="complete", who=Who(RECEIVER, (BAD,), missing=missing))
    path = reports.write(report, tmp_path)
    assert path.stat().st_size < 10_000 and b"\x1b" not in path.read_bytes()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("as it is, ünïcödé 日本 🙂", "as it is, ünïcödé 日本 🙂"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("a\ud800b\udfffc", "abc"),
        ("invoice\u202efdp.exe\u2066", "invoicefdp.exe"),
        ("a\u00a0b\u3000c\u2028d\re", "a b c d e"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("\x00\x07\x7f\u0085\ufeff", " "),
    ],
)
def test_texts_become_printable(text: str, wanted: str) -> None:
    assert printable(text) == wanted
    assert printable(printable(text)) == printable(text)


def test_texts_are_cut() -> None:
    assert printable("x" * LONG, 10) == "x" * 9 + "…" and printable("x" * 10, 10) == "x" * 10
    missing = Missing(BAD, UGLY * 10_000)
    assert len(missing.reason) <= REASON and missing.reason.isprintable()
    assert Missing(BAD, missing.reason) == missing


def test_a_part_that_becomes_no_number_is_left_out(group: LocalGroup, plan: Plan, without: Answer) -> None:
    """A fuser that overflows on what a sender sent."""
    receiver = group._members[RECEIVER]
    fuser = receiver.fuser(plan.fusers[BAD])
    saved = fuser.third.bias.data.clone()  # pyright: ignore
    fuser.third.bias.data.fill_(torch.inf)  # pyright: ignore
    try:
        answer = ask(group, plan)
    finally:
        fuser.third.bias.data.copy_(saved)  # pyright: ignore
    assert tokens(answer) == tokens(without)
    assert answer.missing == (Missing(BAD, "what its fuser makes of its cache is NaN or infinite"),)


def test_a_part_that_cannot_be_fused_is_left_out(
    group: LocalGroup, plan: Plan, without: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = group._members[RECEIVER]

    def failing(*_: object) -> None:
        raise MemoryError("1 TiB")

    monkeypatch.setattr(
        receiver.fuser(plan.fusers[BAD]), "project" if plan.method.fusion.operator == "concat" else "mix", failing
    )
    answer = ask(group, plan)
    assert tokens(answer) == tokens(without)
    assert answer.missing == (Missing(BAD, "MemoryError: 1 TiB"),) and answer.senders == (GOOD,)
