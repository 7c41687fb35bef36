"""Estimate an LLM's memory from its configuration.

Shape legend: B batch, T tokens. Everything is counted at the peak of one request; figures beside measurements are in
docs/log.md.
"""

from __future__ import annotations

import ctypes
import json
import sys
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MIB = 1 << 20
COPIED = 64 * MIB  # of caches that are copied at a time to score choices, or those of one row
LOGITS = 32 * MIB  # of logits at a time, or those of one position
# Python, torch, transformers and Ray in one process. A device of its own adds its driver's libraries and context.
PROCESS_BYTES = {"cpu": 480 * MIB, "cuda": 1400 * MIB, "mps": 600 * MIB}
CONTEXT_BYTES = {"cpu": 0, "cuda": 550 * MIB, "mps": 0}


def release_freed() -> None:
    """Return freed memory to the system where the C library would keep it for its threads (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def count_parameters(config: Any) -> int:
    """Count an architecture's parameters, tied ones once. Nothing is allocated."""
    return _count(type(config), config.to_json_string())


@lru_cache
def _count(kind: type, values: str) -> int:
    with torch.device("meta"):
        return numbers(AutoModelForCausalLM.from_config(kind.from_dict(json.loads(values))))  # pyright: ignore


def numbers(module: torch.nn.Module) -> int:
    """Count a module's parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def work_bytes(config: Any, rows: int, tokens: int, seen: int, dtype: str) -> int:
    """Estimate the activations of a forward pass of B x T tokens over `seen` slots: widest layer, mask, logits."""
    size = BYTES[dtype]
    wide = 6 * config.hidden_size + 3 * config.intermediate_size
    mask = tokens * (tokens + seen) * (2 * size + 1)
    return rows * (tokens * wide * size + mask + 2 * config.vocab_size * (4 + size))


def scoring_bytes(config: Any, rows: int, choices: int, row: int) -> tuple[int, int]:
    """Estimate what scoring so many choices per row copies of caches, of `row` bytes each, and its logits."""
    beginnings = min(rows * row, max(COPIED, row))  # read once per row, and ends once per choice
    ends = min(rows * choices * row, max(COPIED, row))
    return beginnings + ends, 2 * max(LOGITS, 4 * config.vocab_size)  # and their logarithms


def loading_bytes(config: Any, weights: int, dtype: str, zoo: str) -> int:
    """Estimate the memory besides the weights while they are made or read."""
    size = BYTES[dtype]
    if zoo == "shapes":  # an output matrix of its own, until it is tied to the embeddings
        return config.vocab_size * config.hidden_size * size if config.tie_word_embeddings else 0
    return weights * 2 // size if size != 2 else 0  # the file, which holds 16 bit, beside its conversion
