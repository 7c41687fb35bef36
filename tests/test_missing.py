"""Who is missing is named, and policy decides: go on alone, take text instead, or end with an error."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.methods import method, revised
from tiny import QUESTIONS, random_fuser, random_llm, random_member

from fedray.errors import MemberFailed
from fedray.llm.loading import describe
from fedray.member.member import Member
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.registry.planner import Planner
from fedray.registry.store import Registry
from fedray.text import printable
from fedray.types import Answer, FedrayError, Generation, Plan, Receipt, Request
from fedray.wire.payload import Payload, ships

RECEIVER, SENDERS = "qwen3-0.6b", ("llama-1b", "qwen2.5-1.5b")
REQUEST = Request(QUESTIONS, generation=Generation(max_tokens=6))


class Broken(Member):
    """A member that fails in one way."""

    how = "raises"

    @ships
    def share(self, *args: Any, **kwargs: Any) -> tuple[Receipt, Payload]:
        if self.how == "raises":
            raise RuntimeError("out of memory")
        receipt, payload = super().share(*args, **kwargs)
        return receipt, Payload(payload.header, (payload.buffers[0][:-4], *payload.buffers[1:]))


def group(how: str | None = None) -> LocalGroup:
    members = {name: random_member(name) for name in (RECEIVER, *SENDERS)}
    if how:
        members["llama-1b"] = Broken("llama-1b", llm=random_llm("llama-1b"))
        members["llama-1b"].how = how
    return LocalGroup(members)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """Fusers of both senders."""
    store = Registry(tmp_path / "registry", embedded=None)
    for sender in SENDERS:
        fuser = random_fuser(random_llm(sender), random_llm(RECEIVER), "concat")
        store.add_fuser(fuser, describe(random_llm(sender)), describe(random_llm(RECEIVER)), {})
    return tmp_path / "registry"


def plan(registry: Path, senders: tuple[str, ...] = SENDERS, on_missing: str = "alone") -> Plan:
    infos = [describe(random_llm(s)) for s in senders]
    planner = Planner(registry, zoo=registry.parent / "nowhere")
    return planner.plan(describe(random_llm(RECEIVER)), infos, method(gate="open", on_missing=on_missing))


def ask(group: LocalGroup, plan: Plan) -> Answer:
    return asyncio.run(PROTOCOLS["c2c"].run(REQUEST, plan, group))


@pytest.mark.parametrize("route", ["eager", "lazy"])
@pytest.mark.parametrize(("how", "reason"), [("raises", "out of memory"), ("corrupt", "its header promises")])
def test_a_failing_sender_is_named_and_the_answer_is_as_without_it(registry, how, reason, route):
    answer = ask(group(how), revised(plan(registry), gate={"kind": "open", "route": route}))
    (missing,) = answer.missing
    assert missing.member == "llama-1b" and reason in missing.reason
    assert answer.senders == ("qwen2.5-1.5b",)
    without = ask(group(), plan(registry, ("qwen2.5-1.5b",)))
    assert [row.tokens for row in answer.rows] == [row.tokens for row in without.rows]
    assert [row.tokens for row in answer.rows] != [row.tokens for row in ask(group(), plan(registry)).rows]


@pytest.mark.parametrize("how", ["raises", "corrupt"])
def test_error_ends_the_request_and_names_the_sender(registry, how):
    with pytest.raises(MemberFailed, match="llama-1b"):
        ask(group(how), plan(registry, on_missing="error"))


def test_a_sender_without_a_fuser_is_refused_or_speaks(registry, tmp_path):
    import shutil

    shutil.rmtree(registry / f"llama-1b--{RECEIVER}")
    with pytest.raises(FedrayError, match=f"no fuser=mlp fusion=concat for llama-1b -> {RECEIVER}"):
        plan(registry)
    spoken = plan(registry, on_missing="text")
    assert spoken.speakers == ("llama-1b",) and spoken.senders == ("qwen2.5-1.5b",)
    answer = ask(group(), spoken)
    hint = asyncio.run(_hint("llama-1b"))
    only = replace(spoken, speakers=())
    assert "" in hint, "one of them says nothing that can be printed"
    notes = tuple(f"notes:\n- {h}\n{q}" if h else q for h, q in zip(hint, QUESTIONS, strict=True))
    quoted = replace(REQUEST, prompts=notes, asked=dict.fromkeys(SENDERS, QUESTIONS))
    wanted = asyncio.run(PROTOCOLS["c2c"].run(quoted, only, group()))
    assert [row.tokens for row in answer.rows] == [row.tokens for row in wanted.rows]
    assert answer.usage.payload_bytes == wanted.usage.payload_bytes + sum(len(h.encode()) for h in _said)
    assert "hint[llama-1b]" in answer.usage.seconds


_said: list[str] = []


async def _hint(sender: str) -> list[str]:
    """What a sender answers, as notes quote it: printable, on one line."""
    rows = random_member(sender).alone("hint", Request(QUESTIONS, generation=Generation(max_tokens=32))).rows
    _said.extend(printable(row.text) for row in rows)
    return [" ".join(text.split()) for text in _said]


def test_a_fuser_that_cannot_be_read_is_its_senders_trouble(registry):
    whole = plan(registry)
    gone = {**whole.fusers, "llama-1b": replace(whole.fusers["llama-1b"], path="/nowhere", hash="0" * 16)}
    answer = ask(group(), replace(whole, fusers=gone))
    assert [m.member for m in answer.missing] == ["llama-1b"] and answer.senders == ("qwen2.5-1.5b",)


def test_a_receiver_that_fails_ends_the_request(registry):
    with pytest.raises(MemberFailed, match=rf"the receiver {RECEIVER} failed: .*context holds 512"):
        asyncio.run(PROTOCOLS["c2c"].run(Request(("why? " * 600,)), plan(registry), group()))
