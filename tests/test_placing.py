"""Where messages stand: placed caches read as the same words would, and shut gates change nothing."""

from __future__ import annotations

import pytest
import torch
from tiny import QUESTIONS, random_llm
from torch import Tensor

from fedray.border import Border
from fedray.fusion.build import build_fuser
from fedray.fusion.combine import Part
from fedray.fusion.fuser import FuserConfig
from fedray.fusion.placing import Unread, place
from fedray.llm import decoding
from fedray.llm.cache import KVCache
from fedray.llm.decoding import Context
from fedray.llm.model import LLM
from fedray.llm.rotary import unrotate
from fedray.prompts import notes_prompt

NOTES = (["red"], ["the mood of the tree dika is calm.", "blue"], ["green", "tall", "white"])
ALL = ["qwen3-0.6b", "qwen2.5-0.5b", "llama-1b"]


def identity(llm: LLM):
    return build_fuser(FuserConfig("identity", "concat", llm.spec, llm.spec, rotary="removed", tokens="text"))


def read(llm: LLM, ids: list[list[int]]) -> KVCache:
    return decoding.prefill(llm.model, ids, llm.pad_id)[0]


def parts_of(llm: LLM, cache: KVCache, tokens: list[list[list[int]]], weight: float = 1.0) -> list[Part]:
    """A part per message: of each row the keys and values of these tokens, at no place."""
    found = []
    for of_rows in tokens:
        taken = cache.gather(of_rows)
        bare = KVCache(
            cache.spec, unrotate(llm.model, taken.keys, taken.positions), taken.values, taken.lengths,
            torch.arange(taken.tokens).expand(len(of_rows), -1),
        )  # fmt: skip
        found.append(Part(llm.name, identity(llm), bare, torch.full((len(of_rows),), weight)))
    return found


def logits(llm: LLM, placed: tuple[Context, Unread] | None) -> Tensor:
    assert placed is not None
    context, unread = placed
    ids_BQ, valid_BQ = decoding.pad(unread.ids, llm.pad_id, llm.device)
    positions_BQ, _ = decoding.pad(unread.positions, 0, llm.device)
    return decoding.step(llm.model, context, ids_BQ, valid_BQ, positions_BQ=positions_BQ)


def alone(llm: LLM, ids: list[list[int]]) -> Tensor:
    ids_BQ, valid_BQ = decoding.pad(ids, llm.pad_id, llm.device)
    return decoding.step(llm.model, decoding.empty_context(len(ids), llm.device), ids_BQ, valid_BQ)


def said(llm: LLM, row: list[int], note: str) -> list[int]:
    """Where a note's words stand in a prompt."""
    words = llm.encode_answer(f" {note}")
    start = next(i for i in range(len(row)) if row[i : i + len(words)] == words)
    return list(range(start, start + len(words)))


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_an_inline_cache_of_notes_reads_as_the_notes_do(name: str) -> None:
    llm = random_llm(name)
    texts = [notes_prompt(notes, question) for notes, question in zip(NOTES, QUESTIONS, strict=True)]
    told = [llm.encode(text).ids for text in texts]
    encoded = [llm.encode(question) for question in QUESTIONS]
    ids, spans = [e.ids for e in encoded], [e.spans for e in encoded]
    places = [[said(llm, row, note) for note in notes] for row, notes in zip(told, NOTES, strict=True)]
    messages = [[of_row[i] if i < len(of_row) else [] for of_row in places] for i in range(3)]
    parts = parts_of(llm, read(llm, told), messages)
    placed = place(llm, read(llm, ids), ids, spans, parts, "inline")
    assert placed is not None
    assert [len(row) for row in placed[1].ids] < [len(row) for row in told]
    expected = alone(llm, told)
    assert torch.allclose(logits(llm, placed), expected, atol=1e-4)
    assert not torch.allclose(alone(llm, ids), expected, atol=1e-2), "notes make a difference"


@torch.no_grad()
def test_own_notes_and_messages_share_one_heading() -> None:
    llm = random_llm("qwen3-0.6b")
    told = [llm.encode(notes_prompt(["blue", "red"], QUESTIONS[0])).ids]
    own = llm.encode(notes_prompt(["red"], QUESTIONS[0]))
    parts = parts_of(llm, read(llm, told), [[said(llm, told[0], "blue")]])
    placed = place(llm, read(llm, [own.ids]), [own.ids], [own.spans], parts, "inline")
    assert torch.allclose(logits(llm, placed), alone(llm, told), atol=1e-4)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_a_cache_in_front_reads_as_the_same_tokens_in_front(name: str) -> None:
    llm = random_llm(name)
    before = [llm.encode_answer(f"{note}{note[:3]}") for note in ("the color of the star is red.", "tall", "a plain")]
    ids = [llm.encode(question).ids for question in QUESTIONS]
    tokens = [list(range(len(row))) for row in before]
    parts = parts_of(llm, read(llm, before), [tokens])
    placed = place(llm, read(llm, ids), ids, [], parts, "front")
    expected = alone(llm, [one + two for one, two in zip(before, ids, strict=True)])
    assert torch.allclose(logits(llm, placed), expected, atol=1e-4)
    more = parts_of(llm, read(llm, ids), [[[1], [2, 3], []]])
    there, back = (
        logits(llm, place(llm, read(llm, ids), ids, [], both, "front")) for both in (parts + more, more + parts)
    )
    assert torch.allclose(there, back, atol=1e-4) and not torch.allclose(there, expected, atol=1e-3)


@pytest.mark.parametrize("slots", ["front", "inline"])
@torch.no_grad()
def test_shut_gates_are_the_receiver_alone(slots: str) -> None:
    llm = random_llm("qwen3-0.6b")
    encoded = [llm.encode(question) for question in QUESTIONS]
    ids, spans = [e.ids for e in encoded], [e.spans for e in encoded]
    own = read(llm, ids)
    shut = parts_of(llm, own, [[[1], [2], [3]]], weight=0.0)
    assert place(llm, own, ids, spans, shut, slots) is None
    (part,) = parts_of(llm, own, [[[1], [2], [3]]])
    part.weight_B[1:] = 0
    found, expected = logits(llm, place(llm, own, ids, spans, [part], slots)), alone(llm, ids)
    assert torch.allclose(found[1:], expected[1:], atol=1e-4) and not torch.allclose(found[0], expected[0], atol=1e-3)


@torch.no_grad()
def test_a_message_that_does_not_fit_is_left_out_by_name() -> None:
    llm = random_llm("qwen3-0.6b")
    encoded = llm.encode(QUESTIONS[0])
    own, long = read(llm, [encoded.ids]), read(llm, [[7] * (llm.context - len(encoded.ids))])
    border = Border()
    parts = parts_of(llm, long, [[list(range(long.tokens))]])
    assert place(llm, own, [encoded.ids], [encoded.spans], parts, "inline", border) is None
    assert "does not fit the context of qwen3-0.6b" in border.missing()[0].reason
