"""The receiver alone: the line every federation is compared with."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

from fedray.methods.method import NO_GATE, Standalone
from fedray.protocols.exchange import Exchange
from fedray.protocols.group import Group
from fedray.protocols.protocol import Protocol
from fedray.types import Answer, Plan, Request


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    async with Exchange(request, alone(plan), group) as exchange:
        return exchange.close(await exchange.alone())


async def stream(request: Request, plan: Plan, group: Group) -> AsyncGenerator[str | Answer]:
    async with Exchange(request, alone(plan), group) as exchange:
        await exchange.finish_open(exchange.start_open())
        async for piece in exchange.stream([]):
            yield piece


def alone(plan: Plan) -> Plan:
    """The plan of its receiver with nobody to help."""
    return replace(plan, senders=(), speakers=(), peers=(), method=replace(plan.method, gate=NO_GATE))


PROTOCOL = Protocol(settings=Standalone, run=run, stream=stream)
