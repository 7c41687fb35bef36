"""What a sender sends of the caches of its prompts: all of their tokens, or those of the user's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedray.llm.cache import KVCache
from fedray.llm.model import Span
from fedray.llm.rotary import unrotate


def sent_of(model: Any, cache: KVCache, spans: Sequence[Sequence[Span]], tokens: str, unrotated: bool) -> KVCache:
    """Take what is sent of every row, before the wire leaves tokens and layers out; positions count what is sent.

    spans: per row the place of each token in the text; tokens, unrotated: as an Artifact has them. Of a draft's cache
    everything is sent.
    """
    if tokens == "text":
        cache = cache.gather([[t for t, (kind, _) in enumerate(row) if kind >= 0] for row in spans])
    if unrotated:
        cache = replace(cache, keys=unrotate(model, cache.keys, cache.positions))
    return cache if tokens == "prompt" else cache.counted()
