"""Type hints as a schema, for what is no setting: values of strangers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from fedray.schema import Schema
from fedray.types import FedrayError


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    inner: Inner
    more: Mapping[str, Any]
    share: float = 0.5


def test_a_key_without_a_default_must_be_there() -> None:
    read = Schema(Outer).read
    assert read({"inner": {"size": 1}, "more": {"a": [None, {}]}}) == Outer(Inner(1), {"a": [None, {}]})
    for values, says in (
        ({"inner": {"size": 1}}, "more is missing"),
        ({"inner": {}, "more": {}}, "inner.size is missing"),
        ({"share": 1}, "inner, more are missing"),
        ({"inner": None, "more": {}}, "inner must be a setting of its own, got null"),
        ({"inner": {"size": 1}, "more": []}, "more must be a mapping of names"),
        ({"inner": {"size": 1}, "more": {}, "share": 10**400}, "share is too large a number"),
    ):
        with pytest.raises(FedrayError, match=says):
            read(values)
