"""The receiver alone: the line every federation is compared with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from fedray.group import Group
from fedray.protocols.exchange import Exchange
from fedray.types import Answer, Plan, Request


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    async with Exchange(request, _alone(plan), group) as exchange:
        await exchange.open()
        return await exchange.answer([])


async def stream(request: Request, plan: Plan, group: Group) -> AsyncIterator[str | Answer]:
    async with Exchange(request, _alone(plan), group) as exchange:
        await exchange.open()
        async for piece in exchange.stream([]):
            yield piece


def _alone(plan: Plan) -> Plan:
    return replace(plan, senders=(), speakers=(), gate="none", missing=())
