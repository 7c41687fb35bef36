"""The published sequence to the first token, the baseline of suite=request (arXiv 2510.03215 and its reference code).

One after the other, without what can be left out: the receiver reads the prompt, the sender reads it, each with logits
over the whole prompt; both caches are cloned; every layer is fused on its own, every gate computed; the last token is
read on top.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fedray.fusion.c2c import C2CFuser
from fedray.llm.cache import layers_of
from fedray.llm.decoding import cache_argument

PHASES = ("receiver", "sender", "fuse", "rest")


class Published:
    """A receiver and a sender of one tokenizer, and the fuser between them. seconds: of the latest run, per phase."""

    def __init__(self, receiver: Any, sender: Any, fuser: C2CFuser) -> None:
        self._receiver, self._sender, self._fuser = receiver, sender, fuser
        self.seconds: dict[str, float] = {}

    @torch.no_grad()
    def first_token(self, ids: list[int]) -> Tensor:
        """Compute next-token logits (V,) after a prompt that both read as the same token ids."""
        device = self._receiver.device
        ids_1T = torch.tensor([ids], device=device)
        times = [time.perf_counter()]

        def lap() -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

        # 1. the receiver's prompt without its last token, 2. the sender's prompt
        own, sent = DynamicCache(), DynamicCache()
        _read(self._receiver, ids_1T[:, :-1], own)
        lap()
        _read(self._sender, ids_1T[:, :-1], sent)
        lap()
        # 3. copies of both caches, so that neither changes
        base, source = _clone(own), _clone(sent)
        lap()
        # 4. layer by layer: receiver layer t reads sender layer s
        fused = list(base)
        for t, (s, projector) in enumerate(zip(self._fuser.layers, self._fuser.projectors, strict=True)):
            (key, value), (sent_key, sent_value) = base[t], source[s]
            key_change, value_change = projector(sent_key, sent_value, key, value)
            fused[t] = (key + key_change, value + value_change)
        lap()
        # 5. the last token on top of what is fused
        cache = DynamicCache([(key.clone(), value.clone()) for key, value in fused])
        logits = _read(self._receiver, ids_1T[:, -1:], cache)[0, -1].float()
        lap()
        receiver, sender, cloned, fuse, last = (b - a for a, b in pairwise(times))
        self.seconds = dict(zip(PHASES, (receiver, sender, fuse, cloned + last), strict=True))
        return logits


def _read(model: Any, ids_1T: Tensor, cache: DynamicCache) -> Tensor:
    """Compute logits (1, T, V) of ids read on top of a cache, which grows."""
    return model(input_ids=ids_1T, use_cache=True, **{cache_argument(type(model)): cache}).logits


def _clone(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    return [(key.clone(), value.clone()) for key, value in layers_of(cache)]
