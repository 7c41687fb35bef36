"""Prefilled prompts of training questions, the ids of their answers, and the loss on these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.fusion.combine import Part
from fedray.fusion.fuser import Fuser
from fedray.llm import decoding
from fedray.llm.cache import KVCache
from fedray.llm.model import LLM, Encoded, Span
from fedray.types import KVSpec

BATCH = 256  # prompts read at once


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts prefilled by one LLM. cache: all rows in the LLM's space; state_BTD: what a gate reads, if asked."""

    llm: LLM
    cache: KVCache
    spans: list[list[Span]]
    last_B1: Tensor
    state_BTD: Tensor | None = None

    def select(self, rows: list[int]) -> Prefilled:
        index = torch.tensor(rows, device=self.last_B1.device)
        return Prefilled(
            self.llm,
            self.cache.select(rows),
            [self.spans[i] for i in rows],
            self.last_B1[index],
            None if self.state_BTD is None else self.state_BTD[index],
        )

    def own(self) -> KVCache:
        """Crop the prompt's last token, which is read on top of what is fused."""
        return self.cache.crop(self.cache.lengths - 1)

    def part(self, fuser: Fuser) -> Part:
        """Make a sender's share in a fusion, fully open."""
        weight_B = torch.ones(self.cache.batch, device=self.llm.device, dtype=self.llm.model.dtype)
        return Part(self.llm.name, fuser, self.cache, weight_B, tuple(map(tuple, self.spans)))


def prefill(llm: LLM, prompts: Sequence[str], state_layer: int | None = None) -> Prefilled:
    """Prefill all prompts (no gradients); the caches stay in memory, right-padded to the longest."""
    return read(llm, [llm.encode(prompt) for prompt in prompts], state_layer)


def read(llm: LLM, encoded: Sequence[Encoded], state_layer: int | None = None) -> Prefilled:
    """Prefill encoded prompts."""
    caches, states = zip(
        *(
            decoding.prefill(llm.model, [e.ids for e in encoded[i : i + BATCH]], llm.pad_id, state_layer)
            for i in range(0, len(encoded), BATCH)
        ),
        strict=True,
    )
    longest = max(cache.tokens for cache in caches)

    def joined(layers: list[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, 0, 0, longest - t.shape[2])) for t in layers])

    cache = KVCache(
        llm.spec,
        tuple(joined([c.keys[t] for c in caches]) for t in range(llm.spec.layers)),
        tuple(joined([c.values[t] for c in caches]) for t in range(llm.spec.layers)),
        torch.cat([c.lengths for c in caches]),
        torch.cat([torch.nn.functional.pad(c.positions, (0, longest - c.tokens)) for c in caches]),
    )
    last = torch.tensor([[e.ids[-1]] for e in encoded], device=llm.device)
    state = None
    if state_layer is not None:
        state = torch.cat([torch.nn.functional.pad(s, (0, 0, 0, longest - s.shape[1])) for s in states])
    return Prefilled(llm, cache, [e.spans for e in encoded], last, state)


def states(llm: LLM, encoded: Sequence[Encoded], layer: int, at_once: int = BATCH) -> Prefilled:
    """Prefill prompts for a gate, without keeping their caches: many long ones would not fit."""
    read_at_once = (read(llm, encoded[i : i + at_once], layer) for i in range(0, len(encoded), at_once))
    kept = [(part.state_BTD, part.cache.lengths, part.last_B1) for part in read_at_once]
    found = [state for state, _, _ in kept if state is not None]
    longest = max(state.shape[1] for state in found)
    nothing = KVSpec(0, llm.spec.kv_heads, llm.spec.head_dim)
    lengths = torch.cat([length for _, length, _ in kept])
    positions = torch.arange(longest, device=lengths.device)[None].expand(len(encoded), -1)
    return Prefilled(
        llm,
        KVCache(nothing, (), (), lengths, positions),
        [],
        torch.cat([last for _, _, last in kept]),
        torch.cat([torch.nn.functional.pad(state, (0, 0, 0, longest - state.shape[1])) for state in found]),
    )


def answers(llm: LLM, texts: Sequence[str]) -> list[list[int]]:
    """Encode answers as the LLM should decode them, end of turn included."""
    return [[*llm.encode_answer(text), llm.tokenizer.eos_token_id] for text in texts]


def answer_loss(llm: LLM, context: decoding.Context, last_B1: Tensor, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy (B,) of each answer after `context`, mean over its tokens, and whether greedy decoding
    gives it (B,).

    Logits are computed only where the loss needs them: at the last prompt token and the answer's own tokens.
    """
    target_BA, valid_BA = decoding.pad(ids, llm.pad_id, last_B1.device)
    read_BA = torch.cat([last_B1, target_BA[:, :-1]], dim=1)
    logits = decoding.step(llm.model, context, read_BA, valid_BA, all_logits=True)
    token_loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target_BA, reduction="none")
    loss_B = (token_loss * valid_BA).sum(1) / valid_BA.sum(1)
    right_B = ((logits.argmax(-1) == target_BA) | ~valid_BA).all(1)
    return loss_B, right_B
