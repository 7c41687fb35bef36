"""A receiver and senders with fusers of the published size, in this process or in actors.

All LLMs read the same token ids, token by token as published, and every gate is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fedray.benchmark.published import Published
from fedray.benchmark.settings import BenchmarkSettings
from fedray.fusion.c2c import C2CFuser
from fedray.llm.products import pack_matrices, unpack_matrices
from fedray.member.member import Member
from fedray.methods.method import Gate, Method
from fedray.protocols import protocol_of
from fedray.protocols.group import Group, LocalGroup
from fedray.registry.planner import Planner
from fedray.registry.random_fuser import random_artifact
from fedray.types import Answer, Artifact, Generation, MemberInfo, Plan, Request, Talk, Usage

VOCABULARY = 256  # token ids that every LLM knows
SESSION = "benchmark"


class Exchanges:
    """Requests to a receiver and its senders, the receiver the group's first member."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.receiver, *senders = group.members
        self.plan = plan(group.members[self.receiver], [group.members[name] for name in senders])
        self._call(self.receiver, "prepare", self.plan)

    def ask(self, tokens: int, answer: int = 1) -> Answer:
        """The answer of so many tokens to a prompt of so many, by cache-to-cache."""
        return asyncio.run(protocol_of(self.plan).run(request(prompt(tokens), answer), self.plan, self.group))

    def read_on(self, ids: Sequence[int], talk: Talk | None) -> Answer:
        """The first token after a conversation's ids, all of them, by cache-to-cache."""
        return asyncio.run(protocol_of(self.plan).run(replace(request(ids, 1), talk=talk), self.plan, self.group))

    def tell(self, tokens: int, hint: int) -> Answer:
        """The receiver's first token by text: the first sender writes a hint of so many tokens, which it reads too."""
        ids = prompt(tokens)
        said: Answer = self._call(self.plan.senders[0], "alone", SESSION, request(ids, hint))
        heard = [token % VOCABULARY for token in said.rows[0].tokens]
        return self._call(self.receiver, "alone", SESSION, request(ids + heard, 1))

    def read(self, senders: Sequence[str], tokens: int) -> Usage:
        """Let senders read a prompt at the same time."""
        ids = (tuple(prompt(tokens)),)
        handles = [self.group.start(name, "prefill", SESSION, (0,), (), ids) for name in senders]
        asyncio.run(self.group.wait(handles))
        return sum((self.group.result(handle).usage for handle in handles), Usage())

    def _call(self, member: str, method: str, *args: Any) -> Any:
        handle = self.group.start(member, method, *args)
        asyncio.run(self.group.wait([handle]))
        return self.group.result(handle)


class BenchmarkPair(Exchanges):
    """In this process, in whichever precision is asked for."""

    def __init__(self, settings: BenchmarkSettings, dtype: str = "float32", copies: int = 1) -> None:
        """copies: senders of the same weights, which stand in memory once."""
        names = (settings.receiver, settings.sender)
        self.members: Mapping[str, Member] = {
            name: Member(name, zoo=settings.zoo.name, folder=settings.zoo.path, device=settings.device, dtype=dtype)
            for name in names
        }
        for copy in range(1, copies):
            name = f"{settings.sender}-{copy}"
            llm = replace(self.members[settings.sender].llm, name=name)
            self.members = {**self.members, name: Member(name, llm=llm)}
        super().__init__(LocalGroup(self.members))
        receiver, sender = (self.members[name].llm.model for name in names)
        self.published = Published(receiver, sender, self.fuser())

    def fuser(self) -> C2CFuser:
        """Of all senders, which are alike."""
        fuser = self.members[self.receiver].fuser(self.plan.fusers[self.plan.senders[0]])
        assert isinstance(fuser, C2CFuser)
        return fuser

    def to(self, dtype: str, packed: bool = True) -> None:
        """Bring LLMs and fuser to another precision where they stand: both at a time would not fit.

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
        """The same with the first so many senders."""
        names = (self.receiver, *self.plan.senders[:count])
        return Exchanges(LocalGroup({name: self.members[name] for name in names}))


@contextmanager
def spread(settings: BenchmarkSettings, senders: Sequence[str], dtype: str) -> Iterator[Exchanges]:
    """In actors on the cluster of the settings, or on one of their own."""
    from fedray.runtime import actors, cluster
    from fedray.runtime.placement import Placement, place

    ray = settings.ray
    connection = cluster.connect(
        ray.address, namespace=ray.namespace, num_cpus=ray.num_cpus, object_store_mb=ray.object_store_mb
    )
    try:
        device, gpus = settings.device, float(settings.device.startswith("cuda"))
        names = (settings.receiver, *senders)
        wanted = [Placement(name, device, dtype, num_gpus=gpus / len(names)) for name in names]
        group = actors.load_members(
            place(wanted, all_cores=connection.is_embedded), zoo=settings.zoo.name, folder=settings.zoo.path
        )
        try:
            yield Exchanges(group)
        finally:
            group.close()
    finally:
        connection.close()


def request(ids: Sequence[int], answer: int) -> Request:
    return Request((), token_ids=(tuple(ids),), generation=Generation(answer, full=True))


def prompt(tokens: int) -> list[int]:
    """Token ids of a prompt, the same every time."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randint(VOCABULARY, (tokens,), generator=generator).tolist()


def plan(receiver: MemberInfo, senders: Sequence[MemberInfo]) -> Plan:
    """Open gates, and fusers of the published size that read token by token. Senders of one space share a fuser."""
    made = Planner(name="shapes").plan(receiver, senders, Method(fuser="c2c", fusion="mix", gate=Gate("open")))
    return replace(made, fusers={s.name: _token_by_token(random_artifact(s, receiver, "c2c", "mix")) for s in senders})


def _token_by_token(artifact: Artifact) -> Artifact:
    assert artifact.random is not None
    return replace(artifact, random={**artifact.random, "token_alignment": "ids"})
