"""FedAttn in this process, for tests: copies of an LLM in a group, and what it is asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from support.methods import plan as make_plan

from fedray.llm.loading import load as load_llm
from fedray.llm.model import LLM
from fedray.member.member import Member
from fedray.methods.fedattn import FedAttn
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.types import Answer, Generation, Plan, Request

PROMPTS = (
    "notes:\n- the color of the bird tari is red.\n- the mood of the star dika is calm.\n- the home of the gem sosa is "
    "hill.\n- the size of the bird mino is tall.\nwhat is the color of the bird tari?",
    "notes:\n- the taste of the tree kruropos is sweet.\n- the mood of the star dika is calm.\n- the color of the tree "
    "lore is blue.\nwhich taste does the tree kruropos have?",
)
ONE = Request(PROMPTS[:1], generation=Generation(max_tokens=6))
BOTH = Request(PROMPTS, generation=Generation(max_tokens=6))

load = cache(load_llm)


class Keeping(LocalGroup):
    """Sessions stay open, so that they can be looked into."""

    session = ""

    def release(self, session: str, members: Any) -> None:
        self.session = session


def federation(llm: LLM, participants: int, cls: type[Member] = Member) -> Keeping:
    names = [llm.name, *(f"{llm.name}#{i}" for i in range(2, participants + 1))]
    return Keeping({name: cls(name, llm=replace(llm, name=name)) for name in names})


def plan_of(group: LocalGroup, how: FedAttn, **more: Any) -> Plan:
    publisher, *others = group.members
    return make_plan(publisher, tuple(others), protocol=how, **more)


def ask(group: LocalGroup, plan: Plan, request: Request = ONE, protocol: str = "fedattn") -> Answer:
    return asyncio.run(PROTOCOLS[protocol](request, plan, group))


def logits(group: Keeping) -> torch.Tensor:
    publisher = next(iter(group.members))
    return torch.tensor(group.result(group.start(publisher, "prompt_logits", group.session)))
