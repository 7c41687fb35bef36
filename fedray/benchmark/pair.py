"""A receiver and senders with fusers of the published size, in this process or in actors.

All LLMs read the same token ids, token by token as published, and every gate is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fedray.benchmark.published import Published
from fedray.benchmark.settings import BenchmarkSettings
from fedray.fusion.c2c import C2CFuser
from fedray.llm.products import pack_matrices, unpack_matrices
from fedray.member.member import Member
from fedray.methods.method import FuserChoice, Fusion, Gate, Method
from fedray.protocols import protocol_of
from fedray.protocols.group import Group, LocalGroup
from fedray.registry.planner import Planner
from fedray.registry.untrained import random_artifact
from fedray.types import Answer, Artifact, Generation, MemberInfo, Plan, Request, Talk, Usage

VOCABULARY = 256  # token ids that every LLM knows
SESSION = "benchmark"


class Exchanges:
    """Requests to a receiver and its senders; the receiver is the group's first member."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.receiver, *senders = group.members
        self.plan = plan(group.members[self.receiver], [group.members[name] for name in senders])
        self._call(self.receiver, "prepare", self.plan)

    def ask(self, tokens: int, answer: int = 1) -> Answer:
        """Answer a prompt of so many tokens with so many, by cache-to-cache."""
        return asyncio.run(protocol_of(self.plan).run(request(prompt(tokens), answer), self.plan, self.group))

    def read_on(self, ids: Sequence[int], talk: Talk | None) -> Answer:
        """Answer a conversation, all of its ids given, with one token by cache-to-cache."""
        return asyncio.run(protocol_of(self.plan).run(replace(request(ids, 1), talk=talk), self.plan, self.group))

    def tell(self, tokens: int, hint: int) -> Answer:
        """Answer with one token by text: the receiver also reads a hint of so many tokens by the first sender."""
        ids = prompt(tokens)
        hinted: Answer = self._call(self.plan.senders[0], "alone", SESSION, request(ids, hint))
        ids += [token % VOCABULARY for token in hinted.rows[0].tokens]
        return self._call(self.receiver, "alone", SESSION, request(ids, 1))

    def read(self, senders: Sequence[str], tokens: int) -> Usage:
        """Prefill a prompt in several senders at the same time."""
        ids = (tuple(prompt(tokens)),)
        handles = [self.group.start(name, "prefill", SESSION, (0,), (), ids) for name in senders]
        asyncio.run(self.group.wait(handles))
        return sum((self.group.result(handle).usage for handle in handles), Usage())

    def _call(self, member: str, method: str, *args: Any) -> Any:
        handle = self.group.start(member, method, *args)
        asyncio.run(self.group.wait([handle]))
        return self.group.result(handle)


class BenchmarkPair(Exchanges):
    """Requests in this process, in a precision that can be changed."""

    def __init__(self, settings: BenchmarkSettings, dtype: str = "float32", copies: int = 1) -> None:
        """copies: senders of the same weights, which are in memory once."""
        names, zoo = (settings.receiver, settings.sender), settings.zoo
        load = partial(Member, zoo=zoo.name, folder=zoo.path, device=settings.device, dtype=dtype)
        self.members: dict[str, Member] = {name: load(name) for name in names}
        for name in (f"{settings.sender}-{copy}" for copy in range(1, copies)):
            self.members[name] = Member(name, llm=replace(self.members[settings.sender].llm, name=name))
        super().__init__(LocalGroup(self.members))
        receiver, sender = (self.members[name].llm.model for name in names)
        self.published = Published(receiver, sender, self.fuser())

    def fuser(self) -> C2CFuser:
        """Return the fuser of the senders, which are alike."""
        fuser = self.members[self.receiver].fuser(self.plan.fusers[self.plan.senders[0]])
        assert isinstance(fuser, C2CFuser)
        return fuser

    def to(self, dtype: str, packed: bool = True) -> None:
        """Convert LLMs and fuser to another precision in place: both at a time would not fit.

        packed: with their matrices as members lay them out (llm/products.py); else as torch and the published code do.
        """
        for module in (*(self.members[name].llm.model for name in (self.receiver, self.plan.senders[0])), self.fuser()):
            other = next(module.parameters()).dtype != getattr(torch, dtype)
            if other or not packed:
                unpack_matrices(module)
            if other:
                module.to(getattr(torch, dtype))
            if packed:
                pack_matrices(module)

    def with_senders(self, count: int) -> Exchanges:
        """Restrict the exchanges to the first so many senders."""
        names = (self.receiver, *self.plan.senders[:count])
        return Exchanges(LocalGroup({name: self.members[name] for name in names}))


@contextmanager
def spread(settings: BenchmarkSettings, senders: Sequence[str], dtype: str) -> Iterator[Exchanges]:
    """Start actors on the cluster of the settings, or on one of their own."""
    from fedray.runtime import actors, cluster
    from fedray.runtime.placement import Placement, place

    ray, zoo, names = settings.ray, settings.zoo, (settings.receiver, *senders)
    gpus = float(settings.device.startswith("cuda")) / len(names)
    wanted = [Placement(name, settings.device, dtype, num_gpus=gpus) for name in names]
    with closing(cluster.connect(ray.address, **ray.of_cluster)) as connection:
        placed = place(wanted, all_cores=connection.is_embedded)
        with closing(actors.load_members(placed, zoo=zoo.name, folder=zoo.path)) as group:
            yield Exchanges(group)


def request(ids: Sequence[int], answer: int) -> Request:
    return Request((), token_ids=(tuple(ids),), generation=Generation(answer, full=True))


def prompt(tokens: int) -> list[int]:
    """Draw the token ids of a prompt, the same every time."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(VOCABULARY, (tokens,), generator=generator).tolist()


WAY = Method(fuser=FuserChoice("c2c"), fusion=Fusion("mix"), gate=Gate("open"))


def plan(receiver: MemberInfo, senders: Sequence[MemberInfo]) -> Plan:
    """Plan open gates, and fusers of the published size, token by token. Senders of one space share a fuser."""
    made = Planner(name="shapes").plan(receiver, senders, WAY)
    return replace(made, fusers={s.name: _token_by_token(random_artifact(s, receiver, "c2c", "mix")) for s in senders})


def _token_by_token(artifact: Artifact) -> Artifact:
    assert artifact.config is not None
    return replace(artifact, config={**artifact.config, "token_alignment": "ids"})
