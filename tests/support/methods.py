"""Methods and plans from loose values, as on the command line."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from fedray.methods.method import Method
from fedray.protocols import METHOD
from fedray.types import Plan

_OWN = {of.name for of in fields(Plan)}


def method(**parts: Any) -> Method:
    """Method(...) whose parts may be bare values: protocol="t2t", gate="open"."""
    return METHOD.read(parts)


def plan(receiver: str, senders: tuple[str, ...], **values: Any) -> Plan:
    """Plan(...) that takes the parts of its method beside its own fields."""
    parts = {name: value for name, value in values.items() if name not in _OWN}
    own = {name: value for name, value in values.items() if name in _OWN}
    return Plan(receiver, senders, method(**parts), **own)


def revised(made: Plan, **values: Any) -> Plan:
    """replace(...) that takes the parts of its method beside its own fields."""
    parts = {name: value for name, value in values.items() if name not in _OWN}
    own = {name: value for name, value in values.items() if name in _OWN}
    return replace(made, method=METHOD.read({**made.method.parts(), **parts}), **own)
