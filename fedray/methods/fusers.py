"""Which fusers there are, by the name that users write, and which operators each can be trained for."""

from __future__ import annotations

OPERATORS = ("concat", "mix")
KINDS = {"mlp": OPERATORS, "c2c": ("mix",)}  # the first operator is the usual one
