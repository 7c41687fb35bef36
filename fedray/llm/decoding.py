"""Forward passes over an extended cache, with explicit masks, positions and per-segment attention biases.

`generate()` of transformers is silently wrong once foreign slots stand in a cache, so decoding is spelled out here:
every pass states which slot may be seen (a 4-D additive mask), at which position each token stands, and, per layer and
kv head, a bias on the attention scores of every slot (log gate weights and log fuser weights; Eq. 1-4's "∘").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from fedray.llm.cache import KVCache, counted, filled, layers_of
from fedray.llm.catalogue import shown
from fedray.llm.families import window_of
from fedray.llm.preallocated_cache import block
from fedray.types import NO_NUMBERS, FedrayError, Generation

ATTENTION = "fedray"  # attn_implementation of every member: sdpa that also takes a bias per layer and kv head


@cache
def cache_argument(decoder: type) -> str:
    """Find the name of an architecture's cache argument: `cache` since transformers 5.24; the other goes in 5.40."""
    return next(name for name in ("cache", "past_key_values") if name in signature(decoder.forward).parameters)


class _CacheComplete(Exception):
    """The last layer's keys and values are in the cache, and nothing else is wanted."""


def attention_with_bias(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    slot_bias: tuple[Tensor, ...] | None = None,
    distance_BQK: Tensor | None = None,
    sliding_window: int | None = None,
    cache_only: bool = False,
    beyond: Beyond | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute sdpa with slot_bias[layer], (B, N, S), added to the scores of the first S slots of the cache.

    beyond: what the layer sees besides the cache. A layer with a sliding window does not see slots that are so many
    tokens or more away. With `cache_only` the last layer, whose keys and values are in the cache by now, ends the pass.
    """
    if cache_only and module.layer_idx == module.config.num_hidden_layers - 1:
        raise _CacheComplete
    if sliding_window is not None and distance_BQK is not None and attention_mask is not None:
        outside_B1QK = (distance_BQK >= sliding_window)[:, None]
        attention_mask = attention_mask.masked_fill(outside_B1QK, torch.finfo(attention_mask.dtype).min)
    if slot_bias is not None and attention_mask is not None:
        bias_BNS = slot_bias[module.layer_idx].to(attention_mask.dtype)
        slots = attention_mask.shape[-1]
        bias_BNK = torch.nn.functional.pad(bias_BNS, (0, slots - bias_BNS.shape[-1]))
        groups = query.shape[1] // key.shape[1]
        attention_mask = attention_mask + bias_BNK.repeat_interleave(groups, dim=1)[:, :, None]
    if beyond is not None and attention_mask is not None:
        key, value, attention_mask = beyond.extend(module.layer_idx, query, key, value, attention_mask)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, attention_with_bias)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)


class Beyond(Protocol):
    """Slots of single layers that are in no cache of one's own (member/fedattn/remote_rows.py)."""

    def extend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask_B1QK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Append slots to keys, values (B, N, K, H) and the additive mask of a layer; query: (B, heads, Q, H)."""
        ...

    def select(self, index_R: Tensor) -> Beyond: ...


@dataclass(slots=True)
class Context:
    """What the next token attends to: slots of a transformers cache, their visibility and bias.

    visible_BS: False where a slot is padding, masked or foreign without weight; next_position_B: where the next token
    stands; slot_bias: per layer a (B, N, S') bias for the first S' slots (foreign ones come first), or None; beyond:
    what single layers see besides. positions_BS: where every slot stands, where they do not stand one after another: a
    token then sees no slot that stands behind it. None: others' slots have no position, and are near to every token.
    """

    cache: DynamicCache
    visible_BS: Tensor
    next_position_B: Tensor
    slot_bias: tuple[Tensor, ...] | None = None
    beyond: Beyond | None = None
    positions_BS: Tensor | None = None

    @property
    def foreign(self) -> int:
        """The number of others' slots in front."""
        return 0 if self.slot_bias is None else self.slot_bias[0].shape[-1]

    def select(self, rows: Sequence[int]) -> Context:
        """Copy some rows, each as often as it is named."""
        index_R = self.next_position_B.new_tensor(rows)
        layers = [(key[index_R], value[index_R]) for key, value in layers_of(self.cache)]
        bias = None if self.slot_bias is None else tuple(b[index_R] for b in self.slot_bias)
        beyond = None if self.beyond is None else self.beyond.select(index_R)
        places = None if self.positions_BS is None else self.positions_BS[index_R]
        seen, position = self.visible_BS[index_R], self.next_position_B[index_R]
        return Context(DynamicCache(layers), seen, position, bias, beyond, places)


def empty_context(batch: int, device: torch.device) -> Context:
    nothing = torch.zeros(batch, 0, dtype=torch.bool, device=device)
    return Context(DynamicCache(), nothing, torch.zeros(batch, dtype=torch.long, device=device))


def step(
    model: Any,
    context: Context,
    ids_BQ: Tensor,
    valid_BQ: Tensor | None = None,
    *,
    all_logits: bool = False,
    positions_BQ: Tensor | None = None,
) -> Tensor:
    """Read tokens as `extend` does, and return logits: (B, V) of each row's last valid token, or (B, Q, V) with
    `all_logits`."""
    states = extend(model, context, ids_BQ, valid_BQ, positions_BQ=positions_BQ)
    assert states is not None, "only cache_only computes none"
    if not all_logits:
        last = -1 if valid_BQ is None else (valid_BQ.sum(1) - 1).clamp(min=0)
        states = states[counted(len(ids_BQ), states), last]
    return model.lm_head(states).float()


def extend(
    model: Any,
    context: Context,
    ids_BQ: Tensor,
    valid_BQ: Tensor | None = None,
    *,
    positions_BQ: Tensor | None = None,
    cache_only: bool = False,
) -> Tensor | None:
    """Read Q tokens on top of `context`, which is extended in place; returns the last hidden states (B, Q, D).

    ids_BQ is right-padded where valid_BQ is False. positions_BQ: of the tokens, if not one after another from
    next_position_B. cache_only: compute nothing that the cache does not hold, and return None.
    """
    whole = valid_BQ is None
    valid_BQ = torch.ones_like(ids_BQ, dtype=torch.bool) if valid_BQ is None else valid_BQ
    if positions_BQ is None:
        positions_BQ = context.next_position_B[:, None] + (valid_BQ.cumsum(1) - 1).clamp(min=0)
    mask = _mask(context, valid_BQ, positions_BQ, model.dtype)
    window = window_of(model.config)
    far = window is not None and mask.shape[-1] > window
    plain = whole and not far and context.visible_BS.shape[1] == 0 and context.beyond is None
    states = None
    with suppress(_CacheComplete):
        states = model.model(
            input_ids=ids_BQ,
            attention_mask=None if plain else mask,  # nothing to hide: the kernel's own causal order
            position_ids=positions_BQ,
            use_cache=True,
            slot_bias=context.slot_bias,
            distance_BQK=_distances(context, positions_BQ) if far else None,
            cache_only=cache_only,
            beyond=context.beyond,
            **{cache_argument(type(model.model)): context.cache},
        ).last_hidden_state
    context.visible_BS = torch.cat([context.visible_BS, valid_BQ], dim=1)
    if context.positions_BS is not None:
        context.positions_BS = torch.cat([context.positions_BS, positions_BQ], dim=1)
    context.next_position_B = torch.where(valid_BQ, positions_BQ + 1, context.next_position_B[:, None]).amax(1)
    return states


def _mask(context: Context, valid_BQ: Tensor, positions_BQ: Tensor, dtype: torch.dtype) -> Tensor:
    batch, length = valid_BQ.shape
    causal_QQ = valid_BQ.new_ones(length, length).tril()
    seen_BQS = context.visible_BS[:, None].expand(batch, length, -1)
    if context.positions_BS is not None:
        seen_BQS = seen_BQS & (context.positions_BS[:, None] <= positions_BQ[:, :, None])
    own_BQQ = causal_QQ[None] & valid_BQ[:, None]
    allowed = torch.cat([seen_BQS, own_BQQ], dim=2)
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _distances(context: Context, positions_BQ: Tensor) -> Tensor:
    """Compute the distance in tokens of every new token to every slot, (B, Q, S + Q); 0 to slots without a position."""
    if context.positions_BS is not None:
        return positions_BQ[:, :, None] - torch.cat([context.positions_BS, positions_BQ], dim=1)[:, None]
    foreign = context.foreign
    own_BS = context.visible_BS[:, foreign:].cumsum(1) - 1
    distance_BQK = positions_BQ[:, :, None] - torch.cat([own_BS, positions_BQ], dim=1)[:, None]
    return torch.nn.functional.pad(distance_BQK, (foreign, 0))


@torch.no_grad()
def prefill(
    model: Any, ids: list[list[int]], pad_id: int, state_layer: int | None = None
) -> tuple[KVCache, Tensor | None]:
    """Prefill a batch of prompts: their caches, and the hidden states (B, T, D) after `state_layer` layers for a gate.

    state_layer 0 are the embeddings; None returns no states.
    """
    ids_BT, valid_BT = pad(ids, pad_id, model.device)
    context = empty_context(len(ids), model.device)
    context.cache = block(model.config.num_hidden_layers)
    kept: list[Tensor] = []
    even = len({len(row) for row in ids}) == 1
    with keeping(model, state_layer, kept):
        cache_only = is_cache_enough(model, state_layer)
        extend(model, context, ids_BT, None if even else valid_BT, cache_only=cache_only)
    lengths = valid_BT.sum(1)
    positions = counted(ids_BT.shape[1], ids_BT)[None].expand(len(ids), -1).contiguous()
    return KVCache.from_dynamic(context.cache, lengths, positions), kept[0] if kept else None


def is_cache_enough(model: Any, state_layer: int | None) -> bool:
    """Check whether of the last layer only keys and values are read."""
    return state_layer != model.config.num_hidden_layers


@contextmanager
def keeping(model: Any, layer: int | None, kept: list[Tensor]) -> Iterator[None]:
    """Record the output of a layer during a forward pass."""
    if layer is None:
        yield
        return
    module = model.model.embed_tokens if layer == 0 else model.model.layers[layer - 1]
    hook = module.register_forward_hook(
        lambda _module, _inputs, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield
    finally:
        hook.remove()


def pad(rows: list[list[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-pad token ids: (B, T), and their validity (B, T)."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    longest = max(map(len, rows), default=0)
    padded = [row + [fill] * (longest - len(row)) for row in rows]
    ids = torch.tensor(padded, dtype=torch.long).view(len(rows), longest)
    return ids.to(device), filled(lengths, longest).to(device)


def decode(
    model: Any,
    context: Context,
    logits_BV: Tensor,
    generation: Generation,
    *,
    stops: Sequence[frozenset[int]],
    room: list[int],
    cancelled: Callable[[], bool],
    failed: set[int] | None = None,
) -> Iterator[list[int | None]]:
    """Generate tokens step by step: per row the new token, or None where the row has ended. Greedy at temperature 0.

    A row ends at one of its stops (but not with generation.full), after max_tokens, when its room (tokens its LLM's
    context still holds) is used up, or where its logits are no numbers: those are added to `failed`.
    Sampling draws from a generator seeded by `generation.seed`, so the same request gives the same tokens.
    """
    running = [True] * logits_BV.shape[0]
    generator = torch.Generator(device="cpu").manual_seed(generation.seed)
    for index in range(generation.max_tokens):
        tokens, numbers = _choose(logits_BV, generation.temperature, generator)
        if failed is not None:
            failed.update(b for b, alive in enumerate(running) if alive and index < room[b] and not numbers[b])
        running = [
            alive and fine and (generation.full or token not in ends) and index < left
            for alive, fine, token, ends, left in zip(running, numbers, tokens, stops, room, strict=True)
        ]
        if not any(running) or cancelled():
            return
        yield [token if alive else None for token, alive in zip(tokens, running, strict=True)]
        if index + 1 == generation.max_tokens:
            return
        logits_BV = step(model, context, torch.tensor(tokens)[:, None].to(logits_BV.device))


def _choose(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> tuple[list[int], list[bool]]:
    """Choose a token per row, and check whether its logits are numbers; else the token means nothing."""
    top = logits_BV.max(-1)  # which NaN comes through
    numbers_B = top.values.isfinite()
    if temperature <= 0:
        return top.indices.tolist(), numbers_B.tolist()
    numbers = numbers_B.tolist()
    drawn_BV = logits_BV if all(numbers) else logits_BV.where(numbers_B[:, None], 0.0)
    probabilities = torch.softmax(drawn_BV.cpu() / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].tolist(), numbers


def check_numbers(name: str, logits: Tensor) -> None:
    """Validate logits. Raises FedrayError naming the member where they are NaN, infinite, or minus infinity throughout.

    A single token may be at minus infinity: it is never generated.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise FedrayError(f"{shown(name)}: {NO_NUMBERS}")
