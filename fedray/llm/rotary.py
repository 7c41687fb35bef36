"""Rotary position embeddings: take them off keys, or put them on at other positions.

Exact for the families that are served, whose rotations do not change as a text grows (families.py).
Shape legend: B batch, N kv heads, T tokens, H head dim.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedray.errors import FedrayError
from fedray.llm.cache import spec_of
from fedray.llm.catalogue import shown


def rotate(model: Any, keys: Sequence[Tensor], positions_BT: Tensor) -> tuple[Tensor, ...]:
    """Rotate every layer's keys (B, N, T, H) to where they stand; positions may be negative."""
    return _turned(model, keys, positions_BT, 1.0)


def unrotate(model: Any, keys: Sequence[Tensor], positions_BT: Tensor) -> tuple[Tensor, ...]:
    """Take the rotation of their positions off every layer's keys (B, N, T, H)."""
    return _turned(model, keys, positions_BT, -1.0)


def cache_space(config: Any) -> str:
    """Name what two LLMs must share so that a cache of one can stand in the other's: architecture, sizes, rotation."""
    names = ("rope_parameters", "layer_types", "sliding_window", "no_rope_layers", "hidden_size")
    told = {name: getattr(config, name, None) for name in names}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    return f"{config.model_type} {spec_of(config)} {digest[:8]}"


def check_spaces(fuser: str, receiver: tuple[str, str], sender: tuple[str, str]) -> None:
    """Raise FedrayError where a sender's caches cannot stand in a receiver's as they are; both as (name, space)."""
    (one, own), (other, its) = receiver, sender
    if own != its:
        raise FedrayError(
            f"fuser={fuser} takes caches as they are, and those of {shown(other)} ({its}) are none of {shown(one)}'s "
            f"({own}): choose copies such as {one}#2, a fine-tune of the same base, or a trained fuser"
        )


def _turned(model: Any, keys: Sequence[Tensor], positions_BT: Tensor, way: float) -> tuple[Tensor, ...]:
    decoder, config = model.model, model.config
    apply = sys.modules[type(decoder).__module__].apply_rotary_pos_emb
    rotates = getattr(config, "no_rope_layers", None) or [1] * len(keys)  # SmolLM 3: 0 where a layer rotates nothing
    by_kind = hasattr(decoder.rotary_emb, "layer_types")  # Gemma 3: local layers rotate faster
    precise = positions_BT.new_zeros(()).float()
    waves: dict[str | None, tuple[Tensor, Tensor]] = {}
    found = list(keys)
    for layer, key_BNTH in enumerate(keys):
        kind = config.layer_types[layer] if by_kind else None
        if kind not in waves:
            cos, sin = decoder.rotary_emb(precise, positions_BT, *([kind] if by_kind else []))
            scale = cos.square() + sin.square() if way < 0 else cos.new_ones(())  # 1, but for YaRN
            waves[kind] = cos / scale, way * sin / scale
        if rotates[layer]:
            found[layer] = apply(key_BNTH.float(), key_BNTH.float(), *waves[kind])[1].to(key_BNTH.dtype)
    return tuple(found)
