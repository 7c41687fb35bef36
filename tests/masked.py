"""FedAttn in one pass over the whole prompt, by a mask per layer: what the distributed run is compared with.

Nothing is shared with it but the schedule of sync layers and the random draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.llm.decoding import empty_context, step
from fedray.llm.model import LLM
from fedray.member.fedattn.remote_rows import drawn, thinned
from fedray.methods.fedattn import FedAttn, sync_layers


@dataclass
class Masked:
    """`Beyond` that hides instead of adding: token i of segment owner[i] sees what its participant would.

    said: per participant the ids of its whole segment, on which its draws depend.
    """

    how: FedAttn
    depth: int
    owner: list[int]
    said: Sequence[str]
    seed: int = 0

    def extend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor):
        tokens = key.shape[2]
        owner = torch.tensor([*self.owner, *[self.how.participants - 1] * (tokens - len(self.owner))])
        seen = owner[:, None] == owner[None]
        if layer in sync_layers(self.how, self.depth):
            seen = seen | self._sent(layer, query, key, owner)[None]
        seen &= torch.ones(tokens, tokens, dtype=torch.bool).tril()
        return key, value, torch.zeros(tokens, tokens).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]

    def repeat(self, times: int):
        raise AssertionError("one row, decoded anew for every token")

    def _sent(self, layer: int, query: Tensor, key: Tensor, owner: Tensor) -> Tensor:
        sent = torch.zeros(len(owner), dtype=torch.bool)
        for number in range(self.how.participants):
            places = (owner == number).nonzero()[:, 0]
            count = math.ceil(self.how.exchange * len(places) - 1e-9)
            match self.how.score:
                case "norm":
                    worth = -key[0, :, places].norm(dim=-1).mean(0)
                case "rare":
                    mean = key[0][:, places].mean(1, keepdim=True)
                    worth = -torch.cosine_similarity(key[0][:, places], mean, dim=-1).mean(0)
                case "mass":
                    worth = self._mass(query[0][:, places], key[0][:, places])
                case _:
                    seed = f"exchange {layer} {self.seed} {number} {self.said[number]}"
                    worth = drawn(torch.tensor([len(places)]), len(places), [seed])[0]
            sent[places[worth.topk(count).indices]] = True
        return sent

    def _mass(self, query: Tensor, key: Tensor) -> Tensor:
        shares = torch.zeros(key.shape[1])
        for head in range(query.shape[0]):
            for i in range(key.shape[1]):
                kv = key[head * key.shape[0] // query.shape[0], : i + 1]
                shares[: i + 1] += (kv @ query[head, i] / math.sqrt(kv.shape[-1])).softmax(0)
        return shares


@torch.no_grad()
def masked_pass(llm: LLM, parts: Sequence[Sequence[int]], how: FedAttn, new: int, seed: int = 0):
    """Logits (V,) after the prompt, and `new` greedy tokens; parts: token ids per participant.

    Of sparse local attention, the tokens that are not read are left out, and the others stand where they stood.
    """
    names = [" ".join(map(str, part)) for part in parts]
    ids, owner, positions, start = [], [], [], 0
    for number, part in enumerate(parts):
        share = how.tokens if number < len(parts) - 1 else how.publisher_tokens
        read = thinned(len(part), share, f"tokens {seed} {number} {names[number]}")
        ids += [part[i] for i in read]
        owner += [number for _ in read]
        positions += [start + i for i in read]
        start += len(part)
    first: Tensor | None = None
    said: list[int] = []
    for _ in range(new):
        context = empty_context(1, llm.device)
        context.beyond = Masked(how, llm.spec.layers, owner, names, seed)
        places = torch.tensor([[*positions, *range(start, start + len(said))]])
        logits = step(llm.model, context, torch.tensor([[*ids, *said]]), positions_BQ=places)
        assert logits is not None
        first = logits[0] if first is None else first
        token = int(logits[0].argmax())
        if token in llm.stop_ids:
            break
        said.append(token)
    return first, tuple(said)
