"""Prefilled prompts of training questions, the ids of their answers, and the loss on these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedray.fusion.combine import Part
from fedray.fusion.fuser import Fuser
from fedray.fusion.sent import sent_of
from fedray.llm import decoding
from fedray.llm.cache import KVCache, counted
from fedray.llm.model import LLM, Encoded, Span

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
        index, spans = self.last_B1.new_tensor(rows), [self.spans[i] for i in rows]
        state_BTD = None if self.state_BTD is None else self.state_BTD[index]
        return Prefilled(self.llm, self.cache.select(rows), spans, self.last_B1[index], state_BTD)

    def own(self) -> KVCache:
        """Crop the prompt's last token, which is read on top of what is fused."""
        return self.cache.crop(self.cache.lengths - 1)

    def part(self, fuser: Fuser) -> Part:
        """Make a sender's share in a fusion, fully open."""
        weight_B = torch.ones(self.cache.batch).to(self.llm.device, self.llm.model.dtype)
        tokens, unrotated = fuser.config.tokens, fuser.config.rotary == "removed"
        cache = sent_of(self.llm.model, self.cache, self.spans, tokens, unrotated)
        return Part(self.llm.name, fuser, cache, weight_B, tuple(map(tuple, self.spans)))


def prefill(llm: LLM, prompts: Sequence[str], state_layer: int | None = None) -> Prefilled:
    """Prefill all prompts (no gradients); the caches stay in memory, right-padded to the longest."""
    return read(llm, [llm.encode(prompt) for prompt in prompts], state_layer)


def read(llm: LLM, encoded: Sequence[Encoded], state_layer: int | None = None) -> Prefilled:
    """Prefill encoded prompts."""
    batches = ([e.ids for e in encoded[i : i + BATCH]] for i in range(0, len(encoded), BATCH))
    read_at_once = (decoding.prefill(llm.model, ids, llm.pad_id, state_layer) for ids in batches)
    caches, states = zip(*read_at_once, strict=True)
    keys, values = (
        tuple(_joined(layers, 2) for layers in zip(*sides, strict=True))
        for sides in ([c.keys for c in caches], [c.values for c in caches])
    )
    lengths, positions = torch.cat([c.lengths for c in caches]), _joined([c.positions for c in caches], 1)
    last = torch.tensor([[e.ids[-1]] for e in encoded]).to(llm.device)
    state = None if state_layer is None else _joined(states, 1)
    return Prefilled(llm, KVCache(llm.spec, keys, values, lengths, positions), [e.spans for e in encoded], last, state)


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate batches, each padded with zeros along a dimension to the longest."""
    longest = max(tensor.shape[dim] for tensor in tensors)
    behind = [(0, 0) * (tensor.ndim - dim - 1) + (0, longest - tensor.shape[dim]) for tensor in tensors]
    return torch.cat([torch.nn.functional.pad(*pair) for pair in zip(tensors, behind, strict=True)])


def states(llm: LLM, encoded: Sequence[Encoded], layer: int, at_once: int = BATCH) -> Prefilled:
    """Prefill prompts for a gate, without keeping their caches: many long ones would not fit."""
    read_at_once = (read(llm, encoded[i : i + at_once], layer) for i in range(0, len(encoded), at_once))
    kept = [(part.state_BTD, part.cache.lengths, part.last_B1) for part in read_at_once]
    state_BTD = _joined([state for state, _, _ in kept if state is not None], 1)
    lengths, last = torch.cat([length for _, length, _ in kept]), torch.cat([last for _, _, last in kept])
    positions = counted(state_BTD.shape[1], lengths)[None].expand(len(encoded), -1)
    nothing = replace(llm.spec, layers=0)
    return Prefilled(llm, KVCache(nothing, (), (), lengths, positions), [], last, state_BTD)


def answers(llm: LLM, texts: Sequence[str]) -> list[list[int]]:
    """Encode answers as the LLM should decode them, end of turn included."""
    return [[*llm.encode_reply(text), llm.tokenizer.eos_token_id] for text in texts]


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
