"""Several requests as one batch, and what each gets of its answer."""

from __future__ import annotations

from dataclasses import replace

from shared_cluster import RECEIVER, SENDERS
from support.admitting import EVIDENCE, PLAN, asking

from fedray.federation.merging import kind, merged, parts
from fedray.types import Answer, Missing, Request, Row, Usage, failed_rows


def test_an_answer_is_shared_out_row_by_row() -> None:
    one, two = SENDERS
    requests = [Request(("aa", "bb")), Request(("cccc",)), Request(("dddddddd",))]
    rows = (
        Row("a", (1,), weights={one: 1.0, two: 0.0}),
        Row("b", (1, 2), weights={one: 0.0, two: 0.0}),
        Row("c", (1,), weights={one: 0.0, two: 0.7}),
        Row("", failed=True, weights={one: 1.0, two: 0.7}),
    )
    usage = Usage({"total": 2.0}, 1003, 100, 7, {RECEIVER: 100, one: 11})
    late = Missing(two, "late")
    whole = Answer(rows, RECEIVER, SENDERS, (late, *failed_rows(RECEIVER, rows)), usage, unrephrased={3: "flaw"})
    first, second, third = parts(whole, requests)
    assert [part.rows for part in (first, second, third)] == [rows[:2], rows[2:3], rows[3:]]
    assert [part.senders for part in (first, second, third)] == [(one,), (two,), ()]
    assert (first.missing, second.missing) == ((), (late,))
    assert third.missing == failed_rows(RECEIVER, rows[3:]) and third.unrephrased == {0: "flaw"}
    assert [part.usage.seconds for part in (first, second)] == [{"total": 2.0}] * 2
    assert [p.usage.prompt_tokens for p in (first, second, third)] == [25, 25, 50]
    assert sum((replace(p.usage, seconds={}) for p in (first, second, third)), Usage()) == replace(usage, seconds={})
    assert third.usage.payload_bytes == 0 < first.usage.payload_bytes
    assert parts(whole, [merged(requests, None)]) == [whole]


def test_both_ways_everybody_answers_everyone() -> None:
    rows = tuple(Row(text, weights=dict.fromkeys(SENDERS, 0.0)) for text in "ab")  # nobody is heard
    of_all = {RECEIVER: rows, SENDERS[0]: rows[::-1]}
    gone = Missing(SENDERS[1], "died")
    whole = Answer(rows, RECEIVER, SENDERS[:1], (gone,), by_member=of_all, read={SENDERS[0]: ("x", "y")})
    _, second = parts(whole, [asking(), asking()])
    assert second.by_member == {RECEIVER: rows[1:], SENDERS[0]: rows[:1]}
    assert second.missing == (gone,) and second.read == {SENDERS[0]: ("y",)}


def test_a_merged_request_is_its_rows() -> None:
    one = asking("a", evidence=EVIDENCE, asked={RECEIVER: ("x",)}, choices=(("1",),), deadline_s=4.0)
    two = asking("b", evidence={SENDERS[0]: ("other",)}, asked={RECEIVER: ("y",)}, choices=(("2", "3"),))
    assert kind(one, PLAN) == kind(two, PLAN)
    both = merged([one, two], 1.0)
    assert both.select((0,)) == replace(one, deadline_s=1.0) and both.select((1,)) == replace(two, deadline_s=1.0)
