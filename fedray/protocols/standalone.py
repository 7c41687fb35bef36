"""The receiver alone: the line every federation is compared with."""

from __future__ import annotations

from dataclasses import replace

from fedray.group import Group
from fedray.protocols.exchange import Exchange
from fedray.types import Answer, Plan, Request


async def run(request: Request, plan: Plan, group: Group) -> Answer:
    plan = replace(plan, senders=(), gate="none", missing=())
    async with Exchange(request, plan, group) as exchange:
        await exchange.open()
        return await exchange.answer([])
