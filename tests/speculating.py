"""SpecFed on three embedded LLMs in one process, for its tests."""

from __future__ import annotations

import asyncio
from typing import Any

from support.methods import plan as make_plan

from fedray.methods.specfed import SpecFed
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.types import Answer, Generation, Plan, Request
from fedray.world.world import World

DRAFT, WORKERS = "qwen2.5-0.5b", ("qwen2.5-1.5b", "qwen2.5-coder-0.5b")
ONE = WORKERS[:1]
WORLD = World(0)
KNOWN = [fact for fact in WORLD.split("test") if fact.attribute == "color" and fact.domain in ("gem", "star")]
TOLD = [WORLD.tell(fact.domain, fact.name).user for fact in (KNOWN[0], KNOWN[1], KNOWN[-1])]
PROMPTS = (*TOLD, "what is the mood of the star dika?")
REQUEST = Request(PROMPTS, generation=Generation(max_tokens=40))
WHOLE = SpecFed(top_k=1.0)


def plan(workers: tuple[str, ...] = WORKERS, how: SpecFed = WHOLE, **choices: Any) -> Plan:
    return make_plan(DRAFT, workers, protocol=how, gate="none", **choices)


def ask(group: LocalGroup, one: Plan, request: Request = REQUEST) -> Answer:
    return asyncio.run(PROTOCOLS["specfed"].run(request, one, group))


def tokens(answer: Answer) -> list[tuple[int, ...]]:
    return [row.tokens for row in answer.rows]


def nothing_is_open(group: LocalGroup) -> bool:
    return all(member.stats()["sessions"] == 0 for member in group._members.values())
