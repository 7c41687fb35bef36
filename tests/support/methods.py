"""Methods and plans from loose values, as on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from fedray.methods.method import Method, with_fusion
from fedray.protocols import METHOD
from fedray.types import Plan

_OWN = {of.name for of in fields(Plan)}


def method(**parts: Any) -> Method:
    """Method(...) whose parts may be bare values: protocol="t2t", gate="open"."""
    return METHOD.read(with_fusion(parts))


def plan(receiver: str, senders: tuple[str, ...], **values: Any) -> Plan:
    """Plan(...) that takes the parts of its method beside its own fields."""
    parts = {name: value for name, value in values.items() if name not in _OWN}
    own = {name: value for name, value in values.items() if name in _OWN}
    return Plan(receiver, senders, method(**parts), **own)


def revised(made: Plan, **values: Any) -> Plan:
    """replace(...) that takes the parts of its method beside its own fields; of a mapping only what it names changes,
    as in gate={"route": "lazy"}."""
    parts = made.method.parts()
    for name, value in values.items():
        if name not in _OWN:
            parts[name] = {**told(parts[name]), **value} if isinstance(value, Mapping) else value
    return replace(made, method=METHOD.read(parts), **{name: value for name, value in values.items() if name in _OWN})


def told(part: Any) -> dict[str, Any]:
    """The settings of a part of a method."""
    return {of.name: getattr(part, of.name) for of in fields(part)}
