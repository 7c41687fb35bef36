"""Shared by the tests of training."""

from __future__ import annotations

from typing import Any

import pytest

from fedray.training import memory

_estimates: dict[tuple[str, ...], memory.Memory] = {}


@pytest.fixture(autouse=True)
def pictures(unpainted: None) -> None:
    """Most tests here leave some, and look at the figures behind them."""


@pytest.fixture(autouse=True)
def estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second each, and most tests train the same pair."""
    estimate = memory._estimate

    def once(sender: Any, receiver: Any, *more: Any) -> memory.Memory:
        key = (sender.to_json_string(), receiver.to_json_string(), *map(repr, more))
        if key not in _estimates:
            _estimates[key] = estimate(sender, receiver, *more)
        return _estimates[key]

    monkeypatch.setattr(memory, "_estimate", once)
