"""Under rephrasing no text of the original question reaches a sender's process: all that it takes from Ray is looked
through."""

from __future__ import annotations

import asyncio

import pytest
import ray
from probes import some_of, start_counting, stop_counting, taken
from support.methods import method

from fedray.protocols import PROTOCOLS
from fedray.questions.tasks import load_task
from fedray.registry.planner import Planner
from fedray.runtime.actors import RayGroup
from fedray.settings.settings import build
from fedray.types import Answer, Request

RECEIVER, SENDERS = "qwen2.5-coder-0.5b", ("qwen2.5-1.5b", "qwen2.5-0.5b")


@pytest.fixture(scope="module")
def group(embedded: RayGroup) -> RayGroup:
    """Embedded LLMs: rephrasing has to be learnt."""
    return some_of(embedded, RECEIVER, *SENDERS)


@pytest.fixture(scope="module")
def request_() -> Request:
    questions = load_task(build({"task": {"limit": 12}}))
    return Request(tuple(q.prompt for q in questions), tuple(q.choices or () for q in questions))


def ask(group: RayGroup, request: Request, protocol: str, rephrase: str) -> tuple[Answer, dict[str, bytes]]:
    """The answer, and per sender all that its process took meanwhile."""
    receiver, *senders = group.members.values()
    plan = Planner().plan(receiver, senders, method(protocol=protocol, gate="open", rephrase=rephrase))
    actors = [group._actors[sender] for sender in SENDERS]
    ray.get([actor.__ray_call__.remote(start_counting) for actor in actors])
    answer = asyncio.run(PROTOCOLS[protocol](request, plan, group))
    took = ray.get([actor.__ray_call__.remote(taken) for actor in actors])
    ray.get([actor.__ray_call__.remote(stop_counting) for actor in actors])
    return answer, {sender: b"".join(parts) for sender, parts in zip(SENDERS, took, strict=True)}


@pytest.mark.parametrize("rephrase", ["shared", "distinct"])
@pytest.mark.parametrize("protocol", ["c2c", "t2t", "route", "ensemble"])
def test_no_original_reaches_a_sender(group: RayGroup, request_: Request, protocol: str, rephrase: str) -> None:
    answer, took = ask(group, request_, protocol, rephrase)
    assert len(answer.unrephrased) < len(request_.prompts), "nothing was rephrased: the test shows nothing"
    for sender in SENDERS:
        read = [text for text in answer.read[sender] if text]
        assert not set(read) & set(request_.prompts)
        assert protocol == "route" or all(text.encode() in took[sender] for text in read), "the probe is blind"
        assert not any(prompt.encode() in took[sender] for prompt in request_.prompts)


def test_without_rephrasing_it_is_seen(group: RayGroup, request_: Request) -> None:
    _, took = ask(group, request_, "c2c", "none")
    assert all(prompt.encode() in took[sender] for prompt in request_.prompts for sender in SENDERS)
