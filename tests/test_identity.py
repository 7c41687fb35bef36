"""Copies of one LLM federate what each holds without training, and other caches are refused by name."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from commandline import Call
from support.methods import method

from fedray import Federation
from fedray.fusion.identity import IdentityFuser
from fedray.questions.tasks import load_task, request_fields
from fedray.registry.planner import Planner
from fedray.types import FedrayError, Plan

LLM = "qwen3-0.6b"
COPIES = [f"{LLM}#2", f"{LLM}#3"]
TASK = {"name": "tiny-evidence", "split": "validation", "limit": 120}


@pytest.fixture(scope="module")
def fed() -> Iterator[Federation]:
    with Federation(receiver=LLM, senders=COPIES, fuser="identity", ray=False, tracking=False, task=TASK) as found:
        yield found


def right(fed: Federation, plan: Plan, **more: object) -> list[bool]:
    questions = load_task(fed.settings)
    request = fed.request(*(q.prompt for q in questions), **{**request_fields(questions, plan, None), **more})
    answer = fed.run(request, plan)
    assert not answer.missing
    return [bool(q.right(row)) for q, row in zip(questions, answer.rows, strict=True)]


def test_private_documents_are_answered_from(fed: Federation) -> None:
    questions = load_task(fed.settings)
    assert {name for q in questions for name in q.evidence} == set(COPIES), "two documents each"
    assert all(text.count("\n") == 1 for q in questions for text in q.evidence.values())
    assert fed.plan.method.gate.kind == "open" and fed.plan.method.fusion.read == "prompt"
    found, alone = sum(right(fed, fed.plan)), sum(right(fed, fed.plan_for(senders=[], protocol="standalone")))
    others = (*questions[1:], questions[0])
    rolled = {name: tuple(q.evidence[name] for q in others) for name in COPIES}
    deranged = sum(right(fed, fed.plan, evidence=rolled))
    assert found > 0.75 * len(questions) and alone < 0.4 * len(questions) > deranged


def test_the_order_of_the_senders_makes_no_difference(fed: Federation) -> None:
    there, back = (right(fed, fed.plan_for(senders=senders)) for senders in (COPIES, COPIES[::-1]))
    assert there == back


def test_keys_are_moved_to_where_they_stand(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(right(fed, fed.plan))
    monkeypatch.setitem(IdentityFuser.reading, "rotary", "kept")  # pyright: ignore
    kept = fed.plan_for()
    assert not any(artifact.unrotated for artifact in kept.fusers.values())
    fed._loop.run(fed._group.wait([fed._group.start(LLM, "prepare", kept)]))
    assert sum(right(fed, kept)) != whole


HOW: dict[str, Any] = {"ray": False, "tracking": False}
COLOURS = (("red", "blue", "green"),)


def test_a_copy_of_the_receiver_needs_no_fuser_beside_others() -> None:
    """It takes part by identity: alone as with fuser=identity, and beside a sender whose draft is translated."""
    with Federation(receiver=LLM, senders=[COPIES[0], "llama-1b"], fuser="draft", **HOW) as fed:
        request = fed.request(
            "what is the color of the bird dika?", choices=COLOURS, evidence={COPIES[0]: ("dika is red.",)}
        )
        both, alone = fed.plan, fed.plan_for(senders=COPIES[:1])
        plain = fed.plan_for(senders=COPIES[:1], fuser="identity", fusion={"read": "prompt", "slots": "inline"})
        assert [both.fusers[name].tokens for name in (COPIES[0], "llama-1b")] == ["text", "draft"]
        assert both.method.gate.kind == "open", "no gate knows a copy"
        first, second, third = (fed.run(request, plan) for plan in (both, alone, plain))
        assert first.senders == (COPIES[0], "llama-1b") and not first.missing
        assert second.rows[0].scores == pytest.approx(third.rows[0].scores, abs=1e-5)
        assert first.rows[0].scores != pytest.approx(second.rows[0].scores, abs=1e-3)


@pytest.mark.parametrize(
    ("copy", "how", "says"),
    [
        (COPIES[0], {"fusion": "mix"}, "choose fusion=concat, or leave it out"),
        (COPIES[0], {"control": "soft"}, "a copy of qwen3-0.6b, has no soft prompt"),
        ("llama-1b#2", {"gate": "learned"}, "no gate of qwen3-0.6b knows llama-1b#2, which is a copy: use gate=open"),
    ],
    ids=str,
)
def test_what_a_copy_has_not_is_named_before_anything_loads(copy: str, how: dict[str, str], says: str) -> None:
    with pytest.raises(FedrayError, match=says):
        Planner().check(LLM, [copy], method(**{"gate": "open", **how}))


def test_what_to_train_for_a_copy_is_its_llms() -> None:
    with pytest.raises(FedrayError, match=r"sender=llama-1b receiver=qwen2.5-0.5b fuser=soft"):
        Planner().check("qwen2.5-0.5b", ["llama-1b#2"], method(gate="open", control="soft"))


def test_a_copy_has_the_fuser_of_its_llm() -> None:
    with Federation(receiver=LLM, senders=["llama-1b", "llama-1b#2"], gate="open", **HOW) as fed:
        request = fed.request("what is the color of the bird dika?", choices=COLOURS)
        one, two = (fed.run(request, fed.plan_for(senders=[name])).rows[0] for name in ("llama-1b", "llama-1b#2"))
        assert one.scores == two.scores and fed.run(request).senders == ("llama-1b", "llama-1b#2")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("fuser=identity '+senders=[qwen3-0.6b#2]' fusion=mix", "does not go with fuser=identity"),
        ("fuser=draft fuser.max_tokens=0", "fuser.max_tokens"),
        ("fuser=mlp fusion=mix fusion.read=prompt", "fusion.read=prompt does not go with fusion=mix"),
        ("fusion.slots=inline", "add fusion.read=prompt"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(call: Call, words: str, says: str) -> None:
    code, said = call(*shlex.split(words), "ray=none", "tracking=none")
    assert code == 2 and says in said and said.count("\n") <= 1, said


def test_other_cache_spaces_are_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedray.member.member.Member.__init__", lambda *args, **more: pytest.fail("it was loaded"))
    with pytest.raises(FedrayError, match=r"those of llama-1b \(llama 7x4.* none of qwen3-0.6b's .*qwen3-0.6b#2"):
        Federation(receiver=LLM, senders=["llama-1b"], fuser="identity", ray=False, tracking=False)


def test_a_fuser_that_stands_nowhere_is_refused_inside_a_prompt() -> None:
    with Federation(receiver=LLM, senders=["llama-1b"], ray=False, tracking=False) as fed:
        with pytest.raises(FedrayError, match=r"cannot stand inside a prompt: choose fusion.slots=front"):
            fed.plan_for(fusion={"read": "prompt", "slots": "inline"})
        plan = fed.plan_for(fusion={"read": "prompt"}, gate="open")
        assert fed.run(fed.request("what is the color of the bird dika?"), plan).senders
