"""Protocols: how members exchange what they know. Each is `async def run(request, plan, group) -> Answer`.

A protocol owns its loop of exchanges and speaks only to the Group port; it never sees a tensor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fedray.group import Group
from fedray.protocols import c2c, standalone
from fedray.types import Answer, Plan, Request

PROTOCOLS: dict[str, Callable[[Request, Plan, Group], Awaitable[Answer]]] = {
    "standalone": standalone.run,
    "c2c": c2c.run,
}
