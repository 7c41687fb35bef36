"""SpecFed: calls that are repeated, workers that are lost or late, deadlines, and workers of other vocabularies."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from speculating import DRAFT, ONE, PROMPTS, REQUEST, WHOLE, WORKERS, WORLD, ask, nothing_is_open, plan, tokens
from support.methods import revised
from tiny import random_member

from fedray.errors import MemberFailed
from fedray.member.member import Member
from fedray.member.specfed.translation import Translation
from fedray.member.specfed.worker import _with_weight
from fedray.methods.specfed import SpecFed
from fedray.protocols.group import LocalGroup
from fedray.types import FedrayError, Generation
from fedray.wire.payload import CorruptPayload
from fedray.wire.vocabulary import unpack_vocabulary


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({name: Member(name) for name in (DRAFT, *WORKERS)})


Said = dict[tuple[str, ...], list[tuple[int, ...]]]


@pytest.fixture(scope="module")
def said(group) -> Said:
    """What these workers say when nothing is in their way."""
    return {workers: tokens(ask(group, plan(workers))) for workers in (WORKERS, ONE, WORKERS[1:])}


def test_a_repeated_call_changes_nothing_and_a_late_worker_catches_up(group):
    """verify again, and from an older position with all that was missed: the same distributions."""
    worker = group._members[ONE[0]]
    worker.prefill("again", (0,), PROMPTS[:1])
    greedy = worker.alone("reference", REQUEST.select([0])).rows[0].tokens

    def sent(position: int, known: tuple[int, ...], drafts: tuple[int, ...]) -> list[bytes]:
        _, payload = worker.verify("again", (0,), (position,), (known,), (drafts,), REQUEST.generation, WHOLE)
        return [buffer.tobytes() for buffer in payload.buffers]

    first = sent(0, (), greedy[:4])
    assert sent(0, (), greedy[:4]) == first
    later = sent(4, greedy[4:6], greedy[6:9])
    assert sent(4, greedy[4:6], greedy[6:9]) == later
    assert sent(0, (), greedy[:4]) == first, "taken back to the beginning"
    wide = [
        torch.frombuffer(bytearray(b[1]), dtype=torch.float16).view(-1, 640)
        for b in (later, sent(0, greedy[:6], greedy[6:9]))
    ]
    assert torch.allclose(*(w.float() for w in wide), atol=1e-3), "caught up in one call"
    with pytest.raises(FedrayError, match="has not read 20 tokens"):
        sent(20, greedy[:1], ())
    worker.release("again"), worker.release("reference")


def test_the_server_says_a_round_once(group, monkeypatch):
    server, worker = group._members[DRAFT], group._members[ONE[0]]
    one, request = plan(ONE), REQUEST.select([0])
    server.open("twice", request, one)
    worker.prefill("twice", (0,), request.prompts)
    now = server.draft("twice", request, 3, (512,))
    _, payload = worker.verify("twice", (0,), (0,), ((),), now.drafts, request.generation, one.method.of(SpecFed))
    said = server.accept("twice", 0, (0,), ONE, request.generation, one, 3, payload)
    assert server.accept("twice", 0, (0,), ONE, request.generation, one, 3, payload) is said
    with pytest.raises(FedrayError, match="drafted nothing"):
        server.accept("twice", 1, (17,), ONE, request.generation, one, 3, payload)
    _, payload = worker.verify(
        "twice", (0,), (0,), (said.tokens[0],), said.drafts, request.generation, one.method.of(SpecFed)
    )
    monkeypatch.setattr(server, "_draft", failing)
    last = (1, (len(said.tokens[0]),), ONE, request.generation, one, 3, payload)
    for reason in ("out of memory", "drafted nothing"):  # the round before is not said for one that failed
        with pytest.raises((RuntimeError, FedrayError), match=reason):
            server.accept("twice", *last)
    server.release("twice"), worker.release("twice")


def failing(*_: Any) -> None:
    raise RuntimeError("out of memory")


class Failing(Member):
    """A worker whose calls of `verify` after the first few raise, or give what is damaged."""

    calls, good, damaged = 0, 2, ""

    def verify(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls <= self.good:
            return super().verify(*args)
        if not self.damaged:
            raise RuntimeError("out of memory")
        receipt, payload = super().verify(*args)
        if self.damaged == "buffers":
            return receipt, replace(payload, buffers=payload.buffers[:1])
        return receipt, replace(payload, header=payload.header[:10])

    verify.ships = True  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("damaged", ["", "buffers", "header"])
def test_a_lost_worker_leaves_its_weight_to_the_others(group, said, damaged):
    members = dict(group._members)
    failing = members[WORKERS[1]] = Failing(WORKERS[1])
    failing.damaged = damaged
    answer = ask(LocalGroup(members), plan())
    assert [m.member for m in answer.missing] == [WORKERS[1]] and answer.senders == ONE
    assert nothing_is_open(LocalGroup(members))
    assert (damaged or "out of memory") in answer.missing[0].reason
    assert tokens(answer) != said[WORKERS]
    failing.calls = failing.good  # lost in its first round: the other's own answer
    assert tokens(ask(LocalGroup(members), plan())) == said[ONE]
    with pytest.raises(MemberFailed, match=damaged or "out of memory"):
        ask(LocalGroup(members), plan(on_missing="error"))
    assert nothing_is_open(LocalGroup(members))


def test_without_workers_there_is_no_answer(group):
    members = dict(group._members)
    members[ONE[0]] = Failing(ONE[0])
    with pytest.raises(MemberFailed, match=r"no worker is left.*out of memory"):
        ask(LocalGroup(members), plan(ONE))


class Slow(Member):
    """A worker that sleeps in some of its calls of `verify`."""

    calls, asleep = 0, frozenset[int]()

    def verify(self, *args: Any) -> Any:
        self.calls += 1
        time.sleep(1.2 if self.calls in self.asleep else 0.0)
        return super().verify(*args)

    verify.ships = True  # pyright: ignore[reportFunctionMemberAccess]


@pytest.fixture
def slow(group) -> LocalGroup:
    return LocalGroup({**group._members, ONE[0]: Slow(ONE[0])})


def test_what_stands_at_the_deadline_is_the_answer_and_said_to_be_cut_short(said, slow):
    """In the middle of a round, and between two; without any round there is none."""
    one, whole = plan(ONE, SpecFed(gamma=1)), said[ONE]
    patient = replace(REQUEST, deadline_s=30.0)
    assert not ask(slow, one, patient).missing
    worker = slow._members[ONE[0]]
    worker.calls, worker.asleep = 0, frozenset({4})
    hasty = replace(REQUEST, deadline_s=1.0)
    cut = ask(slow, one, hasty)
    (missing,) = cut.missing
    assert missing.member == DRAFT and missing.reason.endswith(" of 4 answers were not at their end within 1 s")
    found = tokens(cut)
    assert all(row == longer[: len(row)] for row, longer in zip(found, whole, strict=True)) and 0 < len(found[0]) < 24
    with pytest.raises(MemberFailed, match="of 4 answers"):
        worker.calls = 0
        ask(slow, revised(one, on_missing="error"), hasty)
    worker.calls, worker.asleep = 0, frozenset({1})
    with pytest.raises(MemberFailed, match=r"no worker answered within 1 s"):
        ask(slow, one, hasty)
    assert nothing_is_open(slow)


class Waiting(LocalGroup):
    """One whose first worker is late in its second call of `verify`, until it has been waited for twice more."""

    calls, polls = 0, 0

    def start(self, member: str, method: str, *args: Any, **kwargs: Any) -> Any:
        done = super().start(member, method, *args, **kwargs)
        if (member, method) == (ONE[0], "verify"):
            self.calls += 1
            if self.calls == 2:
                self.late, done.done_at = done, math.inf
        return done

    async def wait(self, handles: Any, deadline: float | None = None) -> Any:
        if self.calls >= 2 and list(handles) == [self.late]:
            self.polls += 1
            self.late.done_at = 0.0 if self.polls == 2 else math.inf
        return await super().wait(handles, deadline)


def test_a_late_worker_is_counted_in_every_round_without_it(group):
    """It is asked again once it has answered; with on_missing=error its first delay ends the request."""
    one = plan(how=SpecFed(gamma=1, patience_s=60.0))
    answer = ask(Waiting(group._members), one)
    assert [(m.member, m.reason.split(" of ")[0]) for m in answer.missing] == [(ONE[0], "late in 3")]
    found = answer.speculation
    assert found is not None and found.forwards == 2 * found.rounds - 3
    with pytest.raises(MemberFailed, match=r"late in round 2"):
        ask(Waiting(group._members), revised(one, on_missing="error"))
    assert nothing_is_open(group)


@pytest.mark.slow
def test_answers_fit_into_every_workers_context(group):
    """A worker that has more to read has less room for the answer."""
    notes = tuple("\n".join(f"the color of the star {i} is red." for i in range(n)) for n in (28, 27))
    crowded = replace(
        REQUEST.select([0, 1]), evidence={ONE[0]: notes}, generation=Generation(max_tokens=500, full=True)
    )
    answer = ask(group, plan(ONE, SpecFed(gamma=16)), crowded)
    lengths = [len(row) for row in tokens(answer)]
    assert not answer.missing and 0 < lengths[0] < lengths[1] < 200


def test_drafts_behind_the_end_are_not_looked_at(group):
    """A draft that is the worker itself is always right, however far it drafts beyond the end of an answer."""
    same = LocalGroup({DRAFT: Member(ONE[0]), ONE[0]: group._members[ONE[0]]})
    found = ask(same, plan(ONE, SpecFed(gamma=16))).speculation
    assert found is not None and found.acceptance == 1.0
    assert sum(found.decided) < sum(found.drafted) and sum(found.accepted) <= found.emitted + len(PROMPTS)


def test_the_gate_weighs_row_by_row(group, said):
    """gate=oracle stands for a learned gate: each row listens to the worker it names."""
    weights = {WORKERS[0]: (1.0, 0.0, 1.0, 0.0), WORKERS[1]: (0.0, 1.0, 0.0, 1.0)}
    how = replace(WHOLE, weigh="gate")
    answer = ask(group, revised(plan(how=how), gate="oracle"), replace(REQUEST, weights=weights))
    each = [said[(name,)] for name in WORKERS]
    assert tokens(answer) == [each[b % 2][b] for b in range(len(PROMPTS))]
    assert [row.weights[WORKERS[1]] for row in answer.rows] == [0.0, 1.0, 0.0, 1.0]


def test_a_worker_with_another_vocabulary(group):
    """Mapped by the bytes of tokens: it changes the answer, and what has no counterpart is reported; strict refuses
    it."""
    members = {**group._members, "llama-1b": Member("llama-1b")}
    mixed = LocalGroup(members)
    names = (ONE[0], "llama-1b")
    told = replace(REQUEST, prompts=(WORLD.tell("tree", WORLD.entities["tree"][-1]).user, *PROMPTS[1:]))
    answer = ask(mixed, plan(names, SpecFed(top_k=1.0)), told)
    found = answer.speculation
    assert found is not None and not answer.missing
    assert tokens(answer) != tokens(ask(group, plan(ONE), told))
    assert 0 < found.translated < found.verified and 0 < found.unmapped < found.translated
    assert found.figures()["epsilon"] > 0
    assert answer.usage.payload_bytes > found.payload_bytes + 2000, "the server's vocabulary is sent too"
    with pytest.raises(FedrayError, match=r"vocab=strict: llama-1b"):
        ask(mixed, plan(names, SpecFed(vocab="strict")), told)


def test_a_worker_with_another_vocabulary_alone(group):
    """Rounds go on where its tokens do not end, one token at a time if need be, and past bytes that are no text."""
    mixed = LocalGroup({**group._members, "llama-1b": Member("llama-1b")})
    how, longer = SpecFed(gamma=6, top_k=1.0), Generation(max_tokens=24, full=True, temperature=1.5)
    for b in range(len(PROMPTS)):
        answer = ask(mixed, plan(("llama-1b",), how), replace(REQUEST, generation=longer).select([b]))
        assert len(answer.rows[0].tokens) == 24 and not answer.missing


def test_what_is_no_text_is_not_read(group):
    """Half a character, and what stands behind it: the place is that of the text before."""
    llama, server = Member("llama-1b").llm, group._members[DRAFT]
    vocabulary = unpack_vocabulary(server.vocabulary()[1])
    translation = Translation("llama-1b", llama.tokenizer, 512, llama.stop_ids, vocabulary)
    half, red = vocabulary.tokens.index(b"\xc3"), server.llm.encode_answer(" red")
    ids, before = translation.read([*red, half], red)
    assert llama.tokenizer.decode(ids) == " red" and before == [len(ids)] * (1 + len(red))


def test_an_answer_may_spell_out_what_ends_a_prompt(group):
    llama, server = Member("llama-1b").llm, group._members[DRAFT]
    vocabulary = unpack_vocabulary(server.vocabulary()[1])
    translation = Translation("llama-1b", llama.tokenizer, 512, llama.stop_ids, vocabulary)
    for special in llama.tokenizer.all_special_tokens:
        ids = server.llm.tokenizer.encode(special, add_special_tokens=False, split_special_tokens=True)
        own, before = translation.read(ids, ())
        assert llama.tokenizer.decode(own) == special and before == [len(own)]


def test_what_nothing_is_left_of_has_no_say():
    """Mass that float16 cannot tell from nothing, as where nearly all is on tokens that have no counterpart."""
    p_NV = torch.tensor([[1e-10, 1e-9], [0.5, 0.25], [0.0, 0.0]])
    for before, after in ((None, [False, True, False]), ([True, False, True, True], [False, False, True, False])):
        kept, has_P = _with_weight(p_NV, None if before is None else torch.tensor(before))
        assert kept.tolist() == [[0.5, 0.25]] and has_P is not None and has_P.tolist() == after
    assert _with_weight(p_NV[1:2], None)[1] is None


def test_tokens_mean_the_same_by_their_bytes(group):
    llama, server = Member("llama-1b").llm, group._members[DRAFT]
    vocabulary = unpack_vocabulary(server.vocabulary()[1])
    translation = Translation("llama-1b", llama.tokenizer, 512, llama.stop_ids, vocabulary)
    ids = server.llm.encode_answer("the color is red, the size is tall.")
    own, before = translation.read(ids[:4], ids[4:])
    assert llama.tokenizer.decode(own) == server.llm.tokenizer.decode(ids) and own == llama.encode_answer(
        "the color is red, the size is tall."
    )
    for i, count in enumerate(before):
        if count is not None:
            assert llama.tokenizer.decode(own[:count]) == server.llm.tokenizer.decode(ids[: 4 + i])
    assert before[-1] == len(own) and any(count is not None for count in before[:-1])
    red = llama.encode_answer(" red")
    one = torch.zeros(1, 512)
    one[0, red[0]] = 0.75
    one[0, min(llama.stop_ids)] = 0.25
    mapped = translation.distribution(one)
    same = [i for i, token in enumerate(vocabulary.tokens) if token == llama.tokenizer.decode(red[:1]).encode()]
    assert mapped[0, same].tolist() == [0.75]
    assert mapped[0, vocabulary.stops[0]] == 0.25


def test_a_damaged_vocabulary_is_refused(group):
    payload = group._members[DRAFT].vocabulary()[1]
    lengths, text, stops = payload.buffers
    for wrong in (
        replace(payload, header=payload.header[:-1]),
        replace(payload, header=b"XXXX" + payload.header[4:]),
        replace(payload, buffers=(lengths[:-2], text, stops)),
        replace(payload, buffers=(lengths, text[:-1], stops)),
        replace(payload, buffers=(lengths, text, stops + 255)),
    ):
        with pytest.raises(CorruptPayload):
            unpack_vocabulary(wrong)


def test_choices_are_not_written(group):
    with pytest.raises(FedrayError, match="answered freely"):
        ask(group, plan(), replace(REQUEST, choices=(("red", "blue"),) * len(PROMPTS)))


def test_every_family_drafts_and_verifies():
    """Random weights of all three families, each with its own vocabulary throughout."""
    for name in ("qwen3-0.6b", "llama-1b", "qwen2.5-1.5b"):
        group = LocalGroup({"server": random_member(name), "worker": random_member(name)})
        one = replace(plan(), receiver="server", senders=("worker",))
        short = replace(REQUEST, generation=Generation(max_tokens=12, full=True))
        answer = ask(group, one, short)
        assert tokens(answer) == tokens(random_member(name).alone("r", short))
        assert answer.speculation is not None and answer.speculation.acceptance == 1.0
