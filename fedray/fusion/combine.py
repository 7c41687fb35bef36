"""The operator "∘": fuse senders' caches with the receiver's own.

`concat` (FedRefine Eq. 1-4) puts every sender's projected cache beside the receiver's own; `mix` (the case study)
changes the receiver's own cache token by token. In both, the last prompt token (or all of the prompt: placing.py) is
read on top of the result, so it and the answer are the receiver's own. A sender's gate weight w adds log w to the
attention scores of its segment (concat) or scales its change (mix); with w = 0 the answer is the receiver's alone, bit
for bit where its last prompt token reads. A layer that a sender did not send has no effect, as if the fuser's gate were
closed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedray.border import Border
from fedray.fusion.fuser import Fuser, Sides
from fedray.llm.alignment import align_tokens
from fedray.llm.cache import KVCache, counted, filled, side_by_side, stacked
from fedray.llm.decoding import Context
from fedray.llm.model import HEAD, TAIL, Span
from fedray.llm.preallocated_cache import slots
from fedray.llm.rotary import rotate
from fedray.types import FedrayError, Layers
from fedray.wire.codecs import are_finite

MASKED = -1e30  # added to attention scores of slots that a layer must not see; finite, so that no sum is NaN


@dataclass(frozen=True, slots=True)
class Part:
    """One sender's share in a fusion.

    cache: B rows in the sender's space; or, with `lengths`, their tokens one after another in one row, so that a ragged
    batch is padded only once it is fused. lengths: per row of the batch its tokens, 0 of rows that were not sent.
    weight_B: gate weights in [0, 1].
    spans: per row the place of each sender token in the text (mix only). whole: per row the tokens the sender has read,
    where it may have left some out; `cache.positions` says which it sent. layers: those it sent, None is all.
    """

    sender: str
    fuser: Fuser
    cache: KVCache
    weight_B: Tensor
    spans: tuple[tuple[Span, ...], ...] = ()
    whole: tuple[int, ...] = ()
    layers: Layers | None = None
    lengths: tuple[int, ...] | None = None

    def check(self, receiver: KVCache) -> None:
        config = self.fuser.config
        sides = (("sender", config.sender, self.cache.spec), ("receiver", config.receiver, receiver.spec))
        for side, want, got in sides:
            if want != got:
                raise FedrayError(
                    f"fuser of {self.sender}: expected a {side} cache of {want} (layers x heads x dim), got {got}"
                )

    def row(self, b: int) -> tuple[int, int]:
        """Find where row b begins among the tokens that `take` indexes, and how many it has."""
        if self.lengths is None:
            return 0, int(self.cache.lengths[b])
        return sum(self.lengths[:b]), self.lengths[b]

    def positions(self, b: int) -> list[int]:
        start, count = self.row(b)
        return self.cache.positions[b if self.lengths is None else 0, start : start + count].tolist()

    def read_B(self) -> Tensor:
        """(B,): the tokens that the sender has read, sent or not."""
        if self.whole or self.lengths is not None:
            return self.cache.lengths.new_tensor(self.whole or self.lengths)
        return self.cache.lengths

    def places_BT(self) -> Tensor:
        """(B, T): which of the tokens that the sender has read each is."""
        return (
            self.cache.positions
            if self.lengths is None
            else side_by_side(self.cache.positions[:, None], self.lengths)[:, 0]
        )

    def valid_BT(self) -> Tensor:
        if self.lengths is None:
            return self.cache.valid_BT()
        return filled(torch.tensor(self.lengths), max(self.lengths)).to(self.cache.lengths.device)

    def spread(self, tensor: Tensor) -> Tensor:
        """Pad what was made of `cache` to (B, N, T, ...)."""
        per_token = self.fuser.config.slots if tensor.shape[2] != self.cache.tokens else 1
        return tensor if self.lengths is None else side_by_side(tensor, [n * per_token for n in self.lengths])

    def take(self, index_BT: Tensor) -> Sides:
        """Gather tokens of every layer of `cache`, as `row` counts them: keys and values, (B, N, T, H) each.

        All layers at once: a GPU takes longer to start a small piece of work than to do it.
        """
        keys, values = (self._take(side, index_BT) for side in (self.cache.keys, self.cache.values))
        return keys, values

    def _take(self, layers: Sequence[Tensor], index_BT: Tensor) -> tuple[Tensor, ...]:
        batch, tokens = index_BT.shape
        came = [layer for layer, tensor in enumerate(layers) if any(tensor.stride())]
        found: dict[int, Tensor] = {}
        if came:
            all_LBNSH = stacked([layers[layer] for layer in came])
            if self.lengths is not None:
                taken_LBNTH = all_LBNSH[:, 0][:, :, index_BT].transpose(1, 2)
            else:
                _, _, heads, _, dim = all_LBNSH.shape
                index_LBNTH = index_BT[None, :, None, :, None].expand(len(came), -1, heads, -1, dim)
                taken_LBNTH = all_LBNSH.gather(3, index_LBNTH)
            found = dict(zip(came, taken_LBNTH, strict=True))
        # zeros without memory of their own, layers that are not read, stay such
        return tuple(
            found[i] if i in found else layer[:, :, :1].expand(batch, -1, tokens, -1) for i, layer in enumerate(layers)
        )


def fuse(
    operator: str,
    own: KVCache,
    own_spans: list[list[Span]],
    parts: list[Part],
    order: str = "parallel",
    border: Border | None = None,
    model: Any = None,
) -> Context:
    """Fuse `own` (the prompt without its last token) and the parts, by either operator.

    border: records whose part cannot be fused, or becomes NaN or infinite, and goes on without it; None raises.
    model: the receiver's, which rotates the keys of fusers that give them without a place.
    """
    if operator == "mix":
        return concat(mix(own, own_spans, parts, order, border), [])
    return concat(own, parts, border, model)


def concat(own: KVCache, parts: list[Part], border: Border | None = None, model: Any = None) -> Context:
    """Concatenate senders' projected caches and the receiver's own: C(F_j1i, M_j1) ∘ ... ∘ C(M_i)  (Eq. 4).

    `own` holds the prompt without its last token. The receiver's own positions start at 0, as they do alone, and every
    message ends right before them: side by side, so that their order makes no difference.
    """
    messages = project(own, parts, border)
    return joined(own, [message.at(model, -message.size_B) for message in messages])


@dataclass(frozen=True, slots=True)
class Message:
    """What a fuser makes of a part. keys, values: (B, N, T, H) per receiver layer; bias: (B, N, T) per layer, added to
    attention scores; seen_BT: the slots that hold something with weight; places_BT: which of a row's slots each is, of
    size_B in all; positions_BT: where they stand, None where keys are as their sender has rotated them."""

    part: Part
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    bias: Sequence[Tensor]
    seen_BT: Tensor
    places_BT: Tensor
    size_B: Tensor
    positions_BT: Tensor | None = None

    def at(self, model: Any, first_B: Tensor) -> Message:
        """The same message where it stands: its slots from these positions on."""
        if self.part.fuser.config.rotary == "kept":
            return self
        positions_BT = self.places_BT + first_B[:, None]
        return replace(self, keys=rotate(model, self.keys, positions_BT), positions_BT=positions_BT)


def project(own: KVCache, parts: list[Part], border: Border | None = None) -> list[Message]:
    """Let every part's fuser project its cache; a part that fails is left out, and named by the border."""
    found = []
    for part in parts:
        with at_border(border, part):
            part.check(own)
            cache, per_token = part.cache, part.fuser.config.slots
            projection = part.fuser.project_rows(cache.keys, cache.values, cache.positions)
            _check_finite(border, (*projection.keys, *projection.values))
            seen_BT = (part.valid_BT() & (part.weight_B > 0)[:, None]).repeat_interleave(per_token, dim=1)
            keys, values = ([part.spread(t) for t in side] for side in (projection.keys, projection.values))
            bias = _biases(part, [part.spread(w) for w in projection.log_weights])
            within = counted(per_token, seen_BT).repeat(part.places_BT().shape[1])
            places_BT = part.places_BT().repeat_interleave(per_token, dim=1) * per_token + within
            size_B = part.read_B() * per_token
            if projection.silent_B1T is not None:
                seen_BT = seen_BT & ~part.spread(projection.silent_B1T)[:, 0]
                places_BT, size_B = (seen_BT.cumsum(1) - 1).clamp(min=0), seen_BT.sum(1)
            found.append(Message(part, keys, values, bias, seen_BT, places_BT, size_B))
    return found


def joined(own: KVCache, messages: Sequence[Message]) -> Context:
    """Make one cache of messages and the receiver's own, in this order.

    All layers have the same slots, since one mask serves all: those of a layer that was not sent weigh nothing there.
    """
    sides = [(message.keys, message.values) for message in messages] + [(own.keys, own.values)]
    layers = [([keys[t] for keys, _ in sides], [values[t] for _, values in sides]) for t in range(own.spec.layers)]
    bias, positions = None, None
    if messages:
        bias = tuple(torch.cat([message.bias[t] for message in messages], dim=2) for t in range(own.spec.layers))
    if any(message.positions_BT is not None for message in messages):
        before = [torch.full_like(message.places_BT, -1) for message in messages]
        where = [at if m.positions_BT is None else m.positions_BT for m, at in zip(messages, before, strict=True)]
        positions = torch.cat([*where, own.positions], dim=1)
    seen = torch.cat([*(message.seen_BT for message in messages), own.valid_BT()], dim=1)
    return Context(slots(layers), seen, own.lengths.clone(), bias, positions_BS=positions)


def _biases(part: Part, log_weights: Sequence[Tensor]) -> list[Tensor]:
    """Compute per receiver layer the bias of a sender's slots: the log weights of gate and fuser, or MASKED."""
    log_w = torch.log(part.weight_B.clamp(min=torch.finfo(torch.float32).tiny))[:, None, None]
    came = [keys and values for keys, values in zip(*part.fuser.reached(part.layers), strict=True)]
    masked = max(MASKED, torch.finfo(log_weights[0].dtype).min)
    return [w + log_w if here else torch.full_like(w, masked) for w, here in zip(log_weights, came, strict=True)]


def mix(
    own: KVCache, own_spans: list[list[Span]], parts: list[Part], order: str = "parallel", border: Border | None = None
) -> KVCache:
    """Add every sender's change to the receiver's cache, token by token of the same text.

    parallel: all changes are computed from the receiver's own cache and summed; sequential: sender 2 sees the cache
    fused with sender 1 (both as published for C2C).
    """
    keys, values = own.keys, own.values
    for part in parts:
        with at_border(border, part):
            part.check(own)
            index_BT, aligned_BT = alignment(part, own, own_spans)
            base = (keys, values) if order == "sequential" else (own.keys, own.values)
            changes = [_together(side) for side in part.fuser.mix(base, part.take(index_BT), part.layers)]
            _check_finite(border, [change_LBNTH for layers, change_LBNTH in changes if layers])
            scale_B1T1 = (aligned_BT * part.weight_B[:, None]).to(own.keys[0].dtype)[:, None, :, None]
            keys, values = (
                _changed(side, *of_side, scale_B1T1) for side, of_side in zip((keys, values), changes, strict=True)
            )
    return replace(own, keys=keys, values=values)


def _together(changes: Sequence[Tensor | None]) -> tuple[list[int], Tensor]:
    """Which layers change, and their changes in one tensor (L, B, N, T, H), so that a GPU has to be told once."""
    layers = [layer for layer, change in enumerate(changes) if change is not None]
    there = [change for change in changes if change is not None]
    return layers, stacked(there) if there else torch.zeros(0)


def _changed(
    side: Sequence[Tensor], layers: Sequence[int], change_LBNTH: Tensor, scale_B1T1: Tensor
) -> tuple[Tensor, ...]:
    """Keys or values with some layers changed."""
    if not layers:
        return tuple(side)
    new_LBNTH = torch.addcmul(stacked([side[layer] for layer in layers]), scale_B1T1, change_LBNTH)
    changed = dict(zip(layers, new_LBNTH, strict=True))
    return tuple(changed.get(layer, own) for layer, own in enumerate(side))


def at_border(border: Border | None, part: Part) -> AbstractContextManager[None]:
    """What is wrong with a part costs its sender alone, which the border names; without one it is raised."""
    return nullcontext() if border is None else border.of(part.sender)


def _check_finite(border: Border | None, fused: Sequence[Tensor]) -> None:
    """Validate that a sender's part does not make the receiver's answer NaN. Raises FedrayError."""
    if border is None or not fused:
        return
    as_they_lie = [x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)) for x in fused]  # else copied
    if not are_finite([extreme for tensor in as_they_lie for extreme in tensor.aminmax()]):
        raise FedrayError("what its fuser makes of its cache is NaN or infinite")


def alignment(part: Part, own: KVCache, own_spans: list[list[Span]]) -> tuple[Tensor, Tensor]:
    """Align tokens: per receiver slot the sender token it reads (B, T), and 1.0 where there is one."""
    source_BT = torch.full((own.batch, own.tokens), -1)
    for b, (spans, length) in enumerate(zip(own_spans, own.lengths.tolist() if own_spans else (), strict=True)):
        found = _sources(part, b, spans, length)
        source_BT[b, : len(found)] = torch.tensor(found, dtype=torch.long)
    source_BT = source_BT.to(own.lengths.device)
    return source_BT.clamp(min=0), (source_BT >= 0).to(own.keys[0].dtype)


def _sources(part: Part, b: int, spans: Sequence[Span], own_length: int) -> list[int]:
    """Align the receiver tokens of row b with slots of the sender, or -1, as the fuser's token alignment says.

    The prompts may differ in front (notes that only one of them reads): places are counted from the end.
    """
    start, kept = part.row(b)
    if not part.whole or part.whole[b] == kept:
        tokens = _read_tokens(part, b, spans, own_length, kept)
    else:
        slots = {position: slot for slot, position in enumerate(part.positions(b))}
        tokens = [slots.get(token, -1) for token in _read_tokens(part, b, spans, own_length, part.whole[b])]
    return [token if token < 0 else start + token for token in tokens]


def _read_tokens(part: Part, b: int, spans: Sequence[Span], own_length: int, read: int) -> list[int]:
    """Align with all `read` tokens that the sender has read, sent or not."""
    how = part.fuser.config.token_alignment
    if read == 0:
        return []
    if how == "ids":
        return [read - 1 - own_length + t for t in range(own_length)]
    if not part.spans[b]:
        return []
    shift = _end(spans) - _end(part.spans[b])
    moved = [(a, e) if a < 0 else (a + shift, e + shift) if a + shift >= 0 else (HEAD, 0) for a, e in part.spans[b]]
    tokens = align_tokens(moved, spans)
    after = {"assembled": read - 1, "text": -1}[how]
    return [after if spans[t][0] == TAIL else tokens[t] for t in range(own_length)]


def openness(own: KVCache, own_spans: list[list[Span]], part: Part) -> Tensor:
    """Average the fuser's weights over all tokens it reads: (R, L, N), R as in Fuser.weights()."""
    sent, read_BT = (part.cache.keys, part.cache.values), part.cache.valid_BT()
    if part.fuser.config.operator == "mix":
        index_BT, aligned_BT = alignment(part, own, own_spans)
        sent, read_BT = part.take(index_BT), aligned_BT > 0
    weights_RLBNT = part.fuser.weights((own.keys, own.values), sent)
    return (weights_RLBNT * read_BT[:, None]).sum((2, 4)) / read_BT.sum().clamp(min=1)


def _end(spans: Sequence[Span]) -> int:
    """Find where the user's text ends; template marks are negative."""
    return max((end for start, end in spans if start >= 0), default=0)
