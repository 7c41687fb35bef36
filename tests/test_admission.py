"""Many callers ask one federation: who waits, who is refused, and who is answered together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from shared_cluster import RECEIVER, SENDERS
from support.admitting import EVIDENCE, PLAN, SIZE, admission, answer_to, asking, plan_of, small

from fedray.errors import FederationBusy
from fedray.federation.admission import Admission, Batch
from fedray.types import FedrayError, Generation, Plan, Request, Talk


def served(queue: Admission, now: float = 0.0) -> list[str]:
    """The prompts of the batches to come, each joined by commas."""
    found = []
    while (batch := queue.next_batch(now)[0]) is not None:
        found.append(",".join(batch.request.prompts))
        queue.ended(batch)
    return found


def begun(queue: Admission, now: float = 0.0) -> Batch:
    batch, hopeless = queue.next_batch(now)
    assert batch is not None and not hopeless
    return batch


# -- turns ------------------------------------------------------------------------------------------------------------


def test_tenants_take_turns() -> None:
    queue = admission(rows=1)
    for tenant, number in (("a", 5), ("b", 2), ("c", 1)):
        for i in range(number):
            queue.admit(asking(f"{tenant}{i}"), PLAN, tenant, now=i)
    assert served(queue) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]


def test_a_flood_keeps_others_waiting_for_the_next_batch_alone() -> None:
    queue = admission()
    for i in range(100):
        queue.admit(asking(f"a{i}"), PLAN, "a", now=0)
    begun(queue)
    for i in range(2):
        queue.admit(asking(f"b{i}"), PLAN, "b", now=1)
    queue.ended(queue.running[0])
    first, *others = served(queue, now=1)
    assert sorted(first.split(",")) == ["a4", "a5", "b0", "b1"]
    assert len(others) == 24 and "b" not in "".join(others)


def test_turns_are_of_equal_cost() -> None:
    queue = admission(rows=1)
    for i in range(4):
        queue.admit(asking(f"{i}" * 300, generation=Generation(1)), PLAN, "long", now=0)
    for i in range(12):
        queue.admit(asking(f"{i:02}" * 50, generation=Generation(1)), PLAN, "short", now=0)
    order = ["long" if len(prompt) == 300 else "short" for prompt in served(queue)]
    assert Counter(order[:8]) == {"long": 2, "short": 6}
    assert Counter(order) == {"long": 4, "short": 12}


def test_who_asked_nothing_for_long_has_no_turns_saved() -> None:
    queue = admission(rows=1)
    queue.admit(asking("b"), PLAN, "b", now=0)
    waits = begun(queue)
    queue.limits = replace(queue.limits, at_a_time=2)
    for _ in range(20):
        queue.admit(asking("a"), PLAN, "a", now=0)
    for _ in range(10):
        queue.ended(begun(queue))
    for _ in range(10):
        queue.admit(asking("b"), PLAN, "b", now=1)
    assert waits in queue.running
    order = [begun(queue)]
    for _ in range(9):
        queue.ended(order[-1])
        order.append(begun(queue))
    assert Counter(batch.request.prompts[0] for batch in order) == {"a": 5, "b": 5}


def test_ones_own_requests_keep_their_order() -> None:
    queue = admission()
    for i in range(10):
        queue.admit(asking(str(i)), PLAN, "", now=0)
    assert served(queue) == ["0,1,2,3", "4,5,6,7", "8,9"]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_quota_is_of_each_tenant_and_comes_back() -> None:
    queue = admission(quota=2)
    one, _ = (queue.admit(asking(), PLAN, "a", now=0) for _ in range(2))
    with pytest.raises(FederationBusy, match=r"tenant a has 2 requests .* its quota; ask again in 1 s"):
        queue.admit(asking(), PLAN, "a", now=0)
    queue.admit(asking(), PLAN, "b", now=0)
    queue.withdraw(one)
    queue.admit(asking(), PLAN, "a", now=0)
    queue.ended(begun(queue))  # while they are answered they count
    assert len(queue) == 0
    queue.admit(asking(), PLAN, "a", now=0)


def test_what_is_answered_counts_as_much_as_what_waits() -> None:
    queue = admission(quota=2, rows=1)
    for _ in range(2):
        queue.admit(asking(), PLAN, "a", now=0)
    begun(queue)
    with pytest.raises(FederationBusy):
        queue.admit(asking(), PLAN, "a", now=0)


def test_kv_caches_are_bounded_and_a_tenant_leaves_as_much_free_as_it_takes() -> None:
    queue = admission(size=8 * SIZE)
    for _ in range(4):
        queue.admit(small(), PLAN, "a", now=0)
    with pytest.raises(FederationBusy, match=r"takes .* MB of KV caches, more than is free for tenant a"):
        queue.admit(small(), PLAN, "a", now=0)
    for _ in range(2):
        queue.admit(small(), PLAN, "b", now=0)
    queue.admit(small(), PLAN, "c", now=0)


def test_what_is_over_is_free_again() -> None:
    queue = admission(size=8 * SIZE)
    first, *_ = [queue.admit(small(), PLAN, "a", now=0) for _ in range(4)]
    queue.withdraw(first)
    queue.withdraw(first)  # once
    queue.admit(small(), PLAN, "a", now=0)
    with pytest.raises(FederationBusy):
        queue.admit(small(), PLAN, "a", now=0)


def test_what_never_fits_is_no_matter_of_time() -> None:
    queue = admission(size=8 * SIZE)
    with pytest.raises(FedrayError, match=r"admission.kv_mb=.* raise admission.kv_mb") as caught:
        queue.admit(asking("x" * 500), PLAN, "", now=0)
    assert not isinstance(caught.value, FederationBusy)


def slow(seconds: float, **limits: Any) -> Admission:
    """A queue of which one batch took so long."""
    queue = admission(**limits)
    queue.admit(asking(), PLAN, "", now=0)
    batch = begun(queue)
    queue.answered(batch, answer_to(batch.request), now=seconds)
    queue.ended(batch)
    return queue


def test_what_cannot_be_answered_in_time_is_refused() -> None:
    queue = slow(1.0)
    for i in range(5):
        queue.admit(asking(f"a{i}", deadline_s=5.0), PLAN, "a", now=10)
    begun(queue, now=10)  # four of them; one waits
    with pytest.raises(FederationBusy, match=r"an answer may take 2.5 s and the deadline is 1.9 s") as caught:
        queue.admit(asking(deadline_s=1.9), PLAN, "a", now=10)
    assert caught.value.retry_after_s == 1.0  # a batch
    queue.admit(asking(deadline_s=2.5), PLAN, "a", now=10)
    queue.admit(asking(), PLAN, "a", now=10)
    queue.admit(asking(deadline_s=1.9), PLAN, "a", now=10.5)  # half of the batch is done


def test_batches_are_as_large_as_their_requests_have_time_for() -> None:
    queue = admission(rows=32)
    for _ in range(20):
        queue.expected.took(32, 3.4)
        queue.expected.took(2, 0.4)  # 0.1 a row, and 0.2
    for _ in range(32):
        queue.admit(asking(), PLAN, "a", now=0)
    queue.ended(batch := begun(queue))
    assert batch.request.rows() == 32
    for i in range(8):
        queue.admit(asking(f"{i}", deadline_s=2.1), PLAN, "b", now=0)
    queue.ended(batch := begun(queue, now=0))
    assert batch.request.rows() == 8
    for i in range(8):
        queue.admit(asking(f"{i}", deadline_s=2.1), PLAN, "c", now=0)
    found, hopeless = queue.next_batch(now=1.45)  # 0.65 s are left, as four take
    assert [ticket.request.prompts[0] for ticket in hopeless] == ["0", "1", "2", "3"]
    assert found is not None and found.request.prompts == ("4", "5", "6", "7")


def test_a_flood_of_others_does_not_make_a_request_late() -> None:
    queue = slow(1.0)
    for _ in range(400):
        queue.admit(asking(), PLAN, "a", now=0)
    begun(queue)
    queue.admit(asking(deadline_s=2.5), PLAN, "b", now=0)
    with pytest.raises(FederationBusy, match=r"an answer may take 1.3e\+02 s"):
        queue.admit(asking(deadline_s=2.5), PLAN, "a", now=0)


def test_expectations_out_of_date_refuse_nobody_who_is_alone() -> None:
    queue = slow(100.0)
    for _ in range(30):
        queue.admit(asking(deadline_s=1.0), PLAN, "", now=0)
        if queue.retry_after_s > 1:
            with pytest.raises(FederationBusy):
                queue.admit(asking(deadline_s=1.0), PLAN, "", now=0)
        batch = begun(queue)
        queue.answered(batch, answer_to(batch.request), now=0.1)
        queue.ended(batch)
    assert queue.retry_after_s < 0.2


def test_a_request_is_given_up_when_its_deadline_passes() -> None:
    queue = admission(rows=1)
    first, second, third = (queue.admit(asking(deadline_s=s), PLAN, "", now=0) for s in (10.0, 5.0, 8.0))
    batch = begun(queue)
    assert batch.tickets == [first] and queue.next_event() == 5.0
    assert queue.late(now=4.9) == [] and queue.late(now=5.0) == [second] and queue.late(now=5.0) == []
    assert queue.next_event() == 8.0
    assert queue.late(now=8.0) == [third] and len(queue) == 1
    assert queue.next_event() == 11.0  # its answer is on its way
    assert queue.late(now=10.9) == [] and queue.late(now=11.0) == [first]
    assert not batch.tickets and queue.retry_after_s == 11.0  # a batch given up says how long they take, at least


def test_those_that_are_too_late_already_take_nobodys_time() -> None:
    queue = slow(1.0, rows=1)
    kept = [queue.admit(asking(deadline_s=s), PLAN, "", now=0) for s in (1.5, 3.0, 4.0)]
    batch = begun(queue)
    queue.ended(batch)
    batch, hopeless = queue.next_batch(now=2.5)
    assert hopeless == [kept[1]] and batch is not None and batch.tickets == [kept[2]]
    assert batch.request.deadline_s == 1.5


def test_nothing_is_left_of_what_was_refused_or_is_over() -> None:
    queue = admission(quota=1)
    for i in range(1000):
        queue.admit(asking(), PLAN, f"tenant {i}", now=0)
        with pytest.raises(FederationBusy):
            queue.admit(asking(), PLAN, f"tenant {i}", now=0)
        queue.withdraw(queue.admit(asking(), PLAN, f"other {i}", now=0))
    for i in range(1000):
        with pytest.raises(FedrayError):
            queue.admit(asking("x" * 10**9 if i == 0 else "", choices=(("",),)), PLAN, f"nobody {i}", now=0)
    served(queue)
    assert not queue._tenants and not queue.running and len(queue) == 0


# -- who is answered together -----------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[Request, Plan]] = {
    "another plan": (asking(), replace(PLAN, senders=SENDERS[:1])),
    "another generation": (asking(generation=Generation(3)), PLAN),
    "choices": (asking(choices=(("a", "b"),)), PLAN),
    "a document": (asking(evidence=EVIDENCE), PLAN),
    "weights": (asking(weights={SENDERS[0]: (1.0,)}), PLAN),
    "a question of a sender's own": (asking(asked={SENDERS[0]: ("which?",)}), PLAN),
    "a deadline": (asking(deadline_s=9.0), PLAN),
}


@pytest.mark.parametrize("which", OTHERS)
def test_only_what_is_alike_is_answered_together(which: str) -> None:
    queue, (request, plan) = admission(), OTHERS[which]
    for of in ((asking(), PLAN), (request, plan), (asking(), PLAN), (request, plan)):
        queue.admit(*of, "", now=0)
    assert served(queue) == ["what?,what?"] * 2


ALONE: dict[str, tuple[Request, Plan]] = {
    "sampled": (asking(generation=Generation(temperature=0.5)), PLAN),
    "token ids": (Request((), token_ids=((1,),)), PLAN),
    "donors": (Request(("a", "b"), donors=((1, 0),)), PLAN),
    "a conversation": (asking(talk=Talk()), PLAN),
    "random gate": (asking(), plan_of(RECEIVER, SENDERS, gate="random")),
    "samples": (asking(), plan_of(RECEIVER, (), protocol="self_consistency")),
    "gamma": (asking(), plan_of(RECEIVER, SENDERS, protocol={"name": "specfed", "gamma": "auto"})),
}


@pytest.mark.parametrize("which", ALONE)
def test_what_depends_on_its_batch_is_answered_alone(which: str) -> None:
    queue = admission()
    for _ in range(2):
        queue.admit(*ALONE[which], "", now=0)
    assert len(served(queue)) == 2


def test_requests_with_about_as_long_to_wait_are_answered_together() -> None:
    queue = admission(rows=8)
    for seconds in (1.0, 2.0, 2.5, 1.2, 0.4):
        queue.admit(asking(f"{seconds}", deadline_s=seconds), PLAN, "", now=0)
    batch = begun(queue, now=0)
    assert batch.request.prompts == ("1.0", "2.0", "1.2") and batch.request.deadline_s == 1.0
    queue.ended(batch)
    assert served(queue) == ["2.5", "0.4"]


def test_nobody_is_made_late_by_who_joins() -> None:
    queue = slow(0.9, at_a_time=2)
    for tenant, seconds in (("a", 1.8), ("b", 1.2)):
        queue.admit(asking(tenant, deadline_s=seconds), PLAN, tenant, now=0)
    assert served(queue, now=0.5) == ["a", "b"]  # a batch each


def test_time_in_the_queue_is_time_of_the_deadline() -> None:
    queue = admission()
    queue.admit(asking(deadline_s=5.0), PLAN, "", now=10)
    assert begun(queue, now=12).request.deadline_s == 3.0


def test_a_batch_is_bounded_by_rows_and_by_what_is_sent() -> None:
    queue = admission()
    for rows in (3, 2, 1, 9, 1):
        queue.admit(Request(tuple(f"{rows}" for _ in range(rows))), PLAN, "", now=0)
    assert [len(prompts.split(",")) for prompts in served(queue)] == [4, 3, 9]
    queue = admission(sent=2 * SIZE * 2 / 3)
    for _ in range(5):
        queue.admit(small(), PLAN, "", now=0)
    queue.admit(small("x" * 100), PLAN, "", now=0)  # more than may be sent, but nobody else's
    assert [prompts.count(",") + 1 for prompts in served(queue)] == [2, 2, 1, 1]


def test_no_more_batches_than_may_run() -> None:
    queue = admission(at_a_time=2)
    for _ in range(12):
        queue.admit(asking(), PLAN, "", now=0)
    for _ in range(2):
        begun(queue)
    assert queue.next_batch(0.0) == (None, [])


def test_beside_another_batch_only_a_full_one_begins() -> None:
    queue = admission(at_a_time=2)
    for _ in range(7):
        queue.admit(asking(), PLAN, "", now=0)
    assert len(begun(queue).tickets) == 4 and queue.next_batch(0.0) == (None, [])
    queue.admit(asking(), PLAN, "", now=0)
    second = begun(queue)
    assert len(second.tickets) == 4
    queue.ended(second)
    queue.admit(*ALONE["sampled"], "", now=0)  # nobody can join it
    assert len(begun(queue).tickets) == 1


def test_a_batch_that_failed_is_tried_in_halves() -> None:
    queue = admission(rows=8)
    for i in range(8):
        queue.admit(asking("bad" if i == 5 else f"{i}"), PLAN, f"{i % 2}", now=i)
    answered, failed = [], []
    while (batch := queue.next_batch(0.0)[0]) is not None:
        if "bad" not in batch.request.prompts:
            answered += batch.request.prompts
        elif queue.halved(batch):
            continue
        else:
            failed += batch.request.prompts
        queue.ended(batch)
    assert failed == ["bad"] and sorted(answered) == ["0", "1", "2", "3", "4", "6", "7"]
    assert len(queue) == 0
