"""Many callers of a federation on Ray: their answers are those of one process, and members keep nothing."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from support.admitting import PATIENCE_S
from tiny import QUESTIONS

from fedray import Federation
from fedray.errors import MemberFailed
from fedray.types import Answer, Plan, Request

TEXTS = tuple(f"{number} {text}" for number in range(4) for text in QUESTIONS)


def sessions(fed: Federation) -> dict[str, int]:
    """Open sessions by member, once none is left or patience is."""
    import ray

    def held() -> dict[str, int]:
        actors = fed._group._actors  # pyright: ignore
        return {name: stats["sessions"] for name, stats in zip(actors, ray.get(asked(actors)), strict=True)}

    def asked(actors: Any) -> list[Any]:
        return [actor.stats.options(concurrency_group="control").remote() for actor in actors.values()]

    patience = time.monotonic() + PATIENCE_S
    while any((found := held()).values()) and time.monotonic() < patience:
        time.sleep(0.05)
    return found


def test_callers_of_many_threads_get_what_they_would_get_alone(
    random_federation: dict[str, Any], spread: Federation
) -> None:
    with Federation(**random_federation, ray=False) as here:
        alone = {text: here.ask(text) for text in TEXTS}
    found: dict[str, Answer] = {}

    def call(number: int) -> None:
        for text in TEXTS[number::4]:
            found[text] = spread.submit(text, tenant=f"{number % 2}").result(PATIENCE_S)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found.keys() == alone.keys()
    for text, answer in found.items():
        assert answer.rows[0].tokens == alone[text].rows[0].tokens
        assert (answer.senders, answer.missing) == (alone[text].senders, ())
    assert not any(sessions(spread).values())


def test_what_is_taken_back_is_released_in_the_members(spread: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    futures = [spread.submit(text) for text in TEXTS * 5]
    for future in futures[1:]:
        future.cancel()
    assert futures[0].result(PATIENCE_S).text == spread.ask(TEXTS[0]).text
    begun, work = threading.Event(), spread._front._work

    async def noted(request: Request, plan: Plan) -> Answer:
        begun.set()
        return await work(request, plan)

    monkeypatch.setattr(spread._front, "_work", noted)
    running = [spread.submit(spread.request(*TEXTS)) for _ in range(4)]
    assert begun.wait(PATIENCE_S)
    for future in running:
        future.cancel()
    assert spread.submit(TEXTS[1]).result(PATIENCE_S).text == spread.ask(TEXTS[1]).text
    assert not any(sessions(spread).values()) and not spread._front._admission.running


def test_a_prompt_that_cannot_be_read_costs_no_other_its_answer(spread: Federation) -> None:
    with spread._front._changed:  # one batch
        bad, *good = [spread.submit(text) for text in ("word " * 3000, *QUESTIONS)]
    assert [future.result(PATIENCE_S).text for future in good] == [spread.ask(text).text for text in QUESTIONS]
    with pytest.raises(MemberFailed, match="token"):
        bad.result(PATIENCE_S)
    assert not any(sessions(spread).values())
