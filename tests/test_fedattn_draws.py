"""What FedAttn draws at random: the rows that are sent, and the tokens that are read."""

from __future__ import annotations

from typing import Any

import pytest
from participants import ask, federation, plan_of
from tiny import random_llm

from fedray.llm.decoding import step
from fedray.member.fedattn import participant
from fedray.member.member import Member
from fedray.methods.fedattn import FedAttn
from fedray.types import Generation, Request
from fedray.wire.payload import unpack

ROWS = (tuple(range(100, 140)), tuple(range(200, 240)))
HALF = FedAttn(2, 2, exchange=0.5)


class Noting(Member):
    """Notes which of its tokens it sends rows of: per sync and row of the request their places, ascending."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[list[list[int]]] = []

    def _post(self, held: Any, *rest: Any) -> Any:
        own, given = held.running.post, super()._post(held, *rest)
        if given[1] is not None:
            (key_BNSH,) = unpack(given[1]).cache.keys
            alike_BST = (key_BNSH[:, 0, :, None] == own.key_BNTH[:, 0, None]).all(-1)
            self.sent.append([row.nonzero()[:, 1].tolist() for row in alike_BST])
        return given


def sent(rows: tuple[tuple[int, ...], ...], how: FedAttn = HALF, seed: int = 0) -> list[list[list[int]]]:
    """Per sync and row the places of the tokens whose rows the first participant sends."""
    group = federation(random_llm("llama-1b"), how.participants, Noting)
    plan = plan_of(group, how, seed=seed)
    ask(group, plan, Request((), token_ids=rows, generation=Generation(max_tokens=1)))
    member: Any = group._members[plan.senders[0]]
    return member.sent


def test_rows_are_drawn_anew_at_each_sync_and_by_the_seed() -> None:
    found = sent(ROWS[:1])
    assert all(len(set(places)) == 10 for (places,) in found)
    assert len({tuple(places) for (places,) in found}) == len(found) > 1
    assert sent(ROWS[:1]) == found
    assert all(one != other for one, other in zip(sent(ROWS[:1], seed=1), found, strict=True))


def test_rows_of_questions_of_one_length_are_drawn_apart() -> None:
    both = sent(ROWS)
    assert all(first != second for first, second in both)
    for number, row in enumerate(ROWS):
        assert sent((row,)) == [[places[number]] for places in both], "a row draws in a batch what it draws alone"


def test_tokens_of_questions_of_one_length_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[list[int]]] = []

    def noting(*args: Any, positions_BQ: Any, **kwargs: Any) -> Any:
        read.append(positions_BQ.tolist())
        return step(*args, positions_BQ=positions_BQ, **kwargs)

    monkeypatch.setattr(participant, "step", noting)
    sent(ROWS, FedAttn(2, 2, tokens=0.5, publisher_tokens=0.5))
    assert len(read) == 2 and all(len(set(places)) == 10 for rows in read for places in rows)
    assert all(first != second for first, second in read)
    together = [list(rows) for rows in zip(*read, strict=True)]
    for number, row in enumerate(ROWS):
        read.clear()
        sent((row,), FedAttn(2, 2, tokens=0.5, publisher_tokens=0.5))
        assert [rows[0] for rows in read] == together[number], "a row draws in a batch what it draws alone"
