"""Fusers that C2C has published, imported: a federation answers as the reference code does, here and on Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import torch
from reference import FUSERS, RECEIVER, SENDERS, Case, cases, zoo

from fedray.federation.federation import Federation
from fedray.jobs.import_c2c import run
from fedray.protocols.group import Group
from fedray.training.settings import build_import_job
from fedray.types import Generation, Plan, Request

CASES = cases()
SINGLE, BOTH = [c for c in CASES if len(c.senders) < 2], [c for c in CASES if len(c.senders) == 2]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Federation needs: the reference's LLMs, and its fusers through the importer."""
    home = zoo(tmp_path_factory.mktemp("reference"))
    for sender, folder in FUSERS.items():
        pair = {"source": str(folder), "sender": sender, "receiver": RECEIVER}
        places = {"zoo": {"path": home}, "registry": {"path": home / "own"}, "output": home / sender}
        assert run(build_import_job({**pair, **places})) == 0
    return {
        "receiver": RECEIVER,
        "senders": SENDERS,
        "fuser": "c2c",
        "gate": "none",
        "zoo": {"path": home},
        "registry": {"path": home / "own"},
        "tracking": {"enabled": False},
    }


@pytest.fixture(scope="module")
def here(imported: dict[str, Any]) -> Iterator[Federation]:
    with Federation(**imported, ray=False) as fed:
        yield fed


@pytest.fixture(scope="module")
def on_ray(imported: dict[str, Any], cluster: Any) -> Iterator[Federation]:
    with Federation(**imported) as fed:
        yield fed


def test_the_cases_are_all_there() -> None:
    assert len(CASES) == 15 and {c.order for c in BOTH} == {"sequential", "parallel"}
    assert {c.senders for c in SINGLE} == {(), *((sender,) for sender in SENDERS)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_in_process(here: Federation, case: Case) -> None:
    check(here, case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
@pytest.mark.slow
def test_on_ray(on_ray: Federation, case: Case) -> None:
    assert len({member.pid for member in on_ray.members.values()}) == 3
    check(on_ray, case)


@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_the_setting_decides_the_order(imported: dict[str, Any], order: Any) -> None:
    """And a batch of prompts of unequal length answers as each does alone."""
    asked = [case for case in BOTH if case.order == order]
    request = Request((), token_ids=tuple(c.prompt for c in asked), generation=Generation(max_tokens=6))
    with Federation(**imported, fusion_order=order, ray=False) as fed:
        answer = fed.run(request)
    assert [row.tokens for row in answer.rows] == [case.tokens for case in asked]


def test_the_orders_differ(here: Federation) -> None:
    """What would go unnoticed, were one of them taken for the other."""
    (one,) = [c for c in BOTH if c.key == "sequential.m3.p2"]
    (other,) = [c for c in BOTH if c.key == "parallel.m3.p2"]
    assert one.prompt == other.prompt and (one.logits - other.logits).abs().max() > 1e-2


def check(fed: Federation, case: Case) -> None:
    plan = fed.plan_for(senders=case.senders, fusion_order=case.order)
    answer = fed.run(case.request, plan)
    assert not answer.missing and answer.senders == case.senders
    assert answer.rows[0].tokens == case.tokens
    logits = fed._loop.run(first_logits(fed._group, plan, case.request))
    torch.testing.assert_close(logits, case.logits, atol=1e-4, rtol=0)


async def first_logits(group: Group, plan: Plan, request: Request) -> torch.Tensor:
    """Next-token logits (V,) after the prompt, by the calls that a protocol makes."""

    async def done(*handles: Any) -> list[Any]:
        waited = await group.wait(handles, time.monotonic() + 120)
        assert len(waited.ready) == len(handles), waited
        return list(handles)

    session = uuid4().hex
    await done(group.start(plan.receiver, "open", session, request, plan))
    payloads = [
        group.start(sender, "share", session, (0,), token_ids=request.token_ids, spans=True) for sender in plan.senders
    ]
    await done(*payloads)
    (handle,) = await done(group.start(plan.receiver, "first_logits", session, plan.senders, plan, *payloads))
    rows = group.result(handle)
    group.release(session, (plan.receiver, *plan.senders))
    return torch.tensor(rows[0])
