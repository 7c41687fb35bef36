"""A receiver and senders with fusers of the published size, in this process, in whichever precision is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import torch

from fedray.benchmark.published import Published
from fedray.benchmark.settings import BenchmarkSettings
from fedray.fusion.c2c import C2CFuser
from fedray.fusion.untrained import random_artifact
from fedray.group import LocalGroup
from fedray.member import Member
from fedray.planner import Planner
from fedray.protocols import PROTOCOLS
from fedray.types import Answer, Artifact, Generation, MemberInfo, Plan, Request

VOCABULARY = 256  # token ids that every LLM knows


class Pair:
    """What suite=fuse and suite=request measure. Every gate is open.

    All LLMs read the same token ids, so that the published sequence computes the same numbers.
    """

    def __init__(self, settings: BenchmarkSettings, senders: Sequence[str] = ()) -> None:
        self.settings = settings
        names = (settings.receiver, *(senders or (settings.sender,)))
        self.members = {name: Member(name, zoo=settings.zoo, device=settings.device, dtype="float32") for name in names}
        self.group = LocalGroup(self.members)
        self.receiver = self.members[settings.receiver]
        self.plan = plan(self.receiver.info(), [self.members[name].info() for name in names[1:]])
        self.dtype = torch.float32
        self.published = Published(
            self.receiver.llm.model, self.members[names[1]].llm.model, self.fuser(self.plan.senders[0])
        )

    def fuser(self, sender: str) -> C2CFuser:
        """Its weights are the receiver's: in the precision of `to`."""
        fuser = self.receiver.fuser(self.plan.fusers[sender])
        assert isinstance(fuser, C2CFuser)
        return fuser

    def to(self, dtype: torch.dtype) -> None:
        """Bring LLMs and fusers to another precision where they stand: both at a time would not fit."""
        if dtype == self.dtype:
            return
        for member in self.members.values():
            member.llm.model.to(dtype)
        for sender in self.plan.senders:
            self.fuser(sender).to(dtype)
        self.dtype = dtype

    def request(self, tokens: int | None = None, answer: int = 1) -> Request:
        return request(tokens or self.settings.tokens, answer)

    def ask(
        self, tokens: int | None = None, answer: int = 1, protocol: str = "c2c", chosen: Plan | None = None
    ) -> Answer:
        """The answer of so many tokens to a prompt of so many, by fedray's own path in this process."""
        return asyncio.run(PROTOCOLS[protocol](self.request(tokens, answer), chosen or self.plan, self.group))


def request(tokens: int, answer: int) -> Request:
    return Request((), token_ids=(tuple(prompt(tokens)),), generation=Generation(answer, full=True))


def prompt(tokens: int) -> list[int]:
    """Token ids of a prompt, the same every time."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(VOCABULARY, (tokens,), generator=generator).tolist()


def plan(receiver: MemberInfo, senders: Sequence[MemberInfo]) -> Plan:
    """A plan with open gates and fusers of the published size that read token by token, as published."""
    made = Planner(name="shapes").plan(receiver, senders, fuser="c2c", fusion="mix", gate="open")
    return replace(made, fusers={s.name: _token_by_token(random_artifact(s, receiver, "c2c", "mix")) for s in senders})


def _token_by_token(artifact: Artifact) -> Artifact:
    assert artifact.random is not None
    return replace(artifact, random={**artifact.random, "token_alignment": "ids"})
