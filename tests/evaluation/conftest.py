"""Shared by the tests of evaluations."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def pictures(unpainted: None) -> None:
    """Most tests here leave some, and look at the figures behind them."""
