"""What a translator of drafts is trained on: token by token, the sender's cache of a text that it is made to say, and
the receiver's of the same text read as a note.

Both LLMs read everything once; the training itself runs no LLM.
Shape legend: M tokens of all texts as the sender says them, R as the receiver reads them, K slots per token, L layers,
I inputs, F features of keys and values of a layer.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from fedray.errors import FedrayError
from fedray.fusion.draft import FIRST, DraftFuser, inputs_of, targets_of
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.fusion.norms import Norms, norms_of
from fedray.llm import decoding
from fedray.llm.cache import KVCache
from fedray.llm.chat import encode_turns
from fedray.llm.letters import letters_of
from fedray.llm.model import LLM
from fedray.llm.prefix import Known, read_on
from fedray.llm.rotary import unrotate
from fedray.prompts import NOTES
from fedray.training.conversations import LabelledPrompt
from fedray.training.data import BATCH
from fedray.training.recipe import FuserRecipe, fuser_config

MANY = 8  # texts that begin alike: what they begin with is read once
MOST_SLOTS, COVERED = 4, 0.99  # the share of tokens that have a slot for each token that the receiver reads instead
Place = tuple[int, int]
T = TypeVar("T", str, LabelledPrompt)


class TextPair:
    """Tokens of texts as both LLMs hold them; like, of a validation: the training, whose slots it has."""

    at_once = BATCH

    def __init__(
        self,
        sender: LLM,
        receiver: LLM,
        conversations: Sequence[LabelledPrompt],
        recipe: FuserRecipe,
        *,
        like: TextPair | None = None,
        on_done: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self.sender, self.receiver = sender, receiver
        texts = dict.fromkeys(talk.answer for talk in conversations)
        notes = {text: _words(receiver, f" {text}", 1) for text in texts}
        joint = sender.template.joint
        said = {text: _words(sender, f"{joint}{text}", len(joint)) for text in texts}
        whole = {text for text in texts if notes[text][0] and said[text][0]}  # letters that one does not know
        self._talks = [talk for talk in dict.fromkeys(conversations) if talk.answer in whole]
        if not self._talks:
            raise FedrayError(
                f"{sender.name} and {receiver.name} both know the letters of none of the texts: choose other data, or "
                "raise limit"
            )
        notes = {text: found for text, found in notes.items() if text in whole}
        spares = recipe.layers != FIRST
        read = {text: [_read_for(place, notes[text][1], spares) for place in said[text][1]] for text in notes}
        needed = like.slots if like else _needed(Counter(len(tokens) for text in read.values() for tokens in text))
        config = fuser_config(recipe, sender.spec, receiver.spec)
        self._config = replace(config, slots=needed, **DraftFuser.reading)
        self._on_done = on_done
        self._precision = torch.float16 if spares else torch.float32  # of tokens that are kept: many, of large LLMs
        self._held_RLF, slots = self._held({text: ids for text, (ids, _) in notes.items()}, read, spares)
        self._inputs_MI, self._index_MK, self.groups, self._norms = self._pairs(said, slots)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def slots(self) -> int:
        """Of the receiver, for every token of the sender."""
        return self._config.slots

    @property
    def lengths(self) -> list[int]:
        """All tokens take as long."""
        return [1] * len(self)

    def config(self, recipe: FuserRecipe) -> FuserConfig:
        """The configuration of the fuser that is trained on it."""
        return self._config

    def rows(self, rows: Sequence[int]) -> list[int]:
        return list(rows)

    def fit(self, fuser: Fuser, rng: random.Random) -> None:
        """Standardize what an untrained fuser reads and gives."""
        assert isinstance(fuser, DraftFuser)
        fuser.fit(self._inputs_MI, self._held_RLF, self._index_MK)

    def loss(self, fuser: Fuser | None, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Measure the error of each token, and whether its own text is nearest among the batch's; without a fuser the
        error of the mean."""
        if fuser is None:
            return torch.ones(len(batch)), torch.zeros(len(batch), dtype=torch.bool)
        assert isinstance(fuser, DraftFuser)
        rows = torch.tensor(batch)
        inputs_MI, targets_MKLF, there_MK = self._inputs_MI[rows].float(), self.targets(rows), self._index_MK[rows] >= 0
        with torch.no_grad():
            sides = (fuser.standardized(slots_MKLF) for slots_MKLF in (fuser.translated(inputs_MI), targets_MKLF))
            made_MX, true_MX = (_silenced(side_MX, there_MK) for side_MX in sides)
            nearest_M = torch.cdist(made_MX, true_MX).argmin(1)
        return fuser.loss(inputs_MI, targets_MKLF, there_MK), (true_MX[nearest_M] - true_MX).abs().amax(1) < 1e-4

    def targets(self, rows: Tensor | slice) -> Tensor:
        """What the receiver holds in the slots of some tokens, (M, K, L, F); of slots without a token something."""
        return self._held_RLF[self._index_MK[rows].clamp(min=0)].float()

    def openness(self, fuser: Fuser, batch: Sequence[int]) -> Tensor:
        """A translator has no weights of its own: (1, L, N), all open."""
        spec = self.receiver.spec
        return torch.ones(1, spec.layers, spec.kv_heads)

    def norms(self) -> Norms:
        """Measure the range of the sender's caches of the texts."""
        return self._norms

    def _held(
        self, notes: dict[str, list[int]], read: dict[str, list[list[int]]], spares: bool
    ) -> tuple[Tensor, dict[str, list[list[int]]]]:
        """What the receiver holds of all texts, and per text which of it is in the slots of each of the sender's
        tokens: what is too little fills all of them, unless it `spares` some (-1)."""
        head = self.receiver.encode_part("".join(NOTES[:2]), first=True, last=False)
        held: list[Tensor] = []
        slots: dict[str, list[list[int]]] = {}
        first, count = 0, self.slots
        for texts, cache, starts in self._caches(self.receiver, {text: (head, ids) for text, ids in notes.items()}):
            for b, text in enumerate(texts):
                start, end = starts[b], int(cache.lengths[b])
                sides = ([x[b : b + 1, :, start:end] for x in side] for side in (cache.keys, cache.values))
                held.append(targets_of(*map(tuple, sides)).to(self._precision))
                if spares:
                    slots[text] = [[first + i for i in of[:count]] + [-1] * (count - len(of)) for of in read[text]]
                else:
                    slots[text] = [[first + of[k * len(of) // count] for k in range(count)] for of in read[text]]
                first += len(held[-1])
        return torch.cat(held), slots

    def _pairs(
        self, said: dict[str, tuple[list[int], list[Place]]], slots: dict[str, list[list[int]]]
    ) -> tuple[Tensor, Tensor, list[str], Norms]:
        """Inputs of every token of every text, behind its own question, and its slots."""
        prompts = {talk.turns("sender"): list[int]() for talk in self._talks}
        prompts = {turns: encode_turns(self.sender, turns).ids for turns in prompts}
        asked = {talk: (prompts[talk.turns("sender")], said[talk.answer][0]) for talk in self._talks}
        inputs, wanted, groups, norms = [], list[list[int]](), [], []
        for talks, cache, starts in self._caches(self.sender, asked):
            drafts = cache.gather([list(range(start, int(n))) for start, n in zip(starts, cache.lengths, strict=True)])
            drafts = drafts.counted()
            rows_BTI = inputs_of(self._config, drafts.keys, drafts.values, drafts.positions)
            inputs.append(rows_BTI[drafts.valid_BT().flatten()].to(self._precision))
            wanted += [row for talk in talks for row in slots[talk.answer]]
            groups += [talk.group for talk, n in zip(talks, drafts.lengths.tolist(), strict=True) for _ in range(n)]
            norms.append(norms_of([drafts]))
        return torch.cat(inputs), torch.tensor(wanted), groups, _widest(norms)

    def _caches(
        self, llm: LLM, texts: Mapping[T, tuple[list[int], list[int]]]
    ) -> Iterator[tuple[list[T], KVCache, list[int]]]:
        """Read (what stands before, text) of each key, those of a length together.

        Yields keys, their caches without rotation, and where the texts start. What stands before many is read once.
        """
        done = 0
        for part in _parts(texts):
            before, ids = texts[part[0]][0], [[*texts[key][0], *texts[key][1]] for key in part]
            shared = len(part) > 1 and all(texts[key][0] is before for key in part)
            if shared:
                head, _ = decoding.prefill(llm.model, [before], llm.pad_id)
                cache, _ = read_on(llm.model, ids, llm.pad_id, Known(head.select([0] * len(part))))
            else:
                cache, _ = decoding.prefill(llm.model, ids, llm.pad_id)
            starts = [len(texts[key][0]) for key in part]
            cache = _from(cache, first := min(starts))
            bare = tuple(key.float() for key in unrotate(llm.model, cache.keys, cache.positions))
            values = tuple(value.float() for value in cache.values)
            yield part, replace(cache, keys=bare, values=values), [start - first for start in starts]
            self._on_done(done := done + len(part), len(texts))


def _from(cache: KVCache, first: int) -> KVCache:
    """The slots from one on, which no row ends before."""
    keys, values = (tuple(layer[:, :, first:] for layer in side) for side in (cache.keys, cache.values))
    return KVCache(cache.spec, keys, values, cache.lengths - first, cache.positions[:, first:])


def _parts(texts: Mapping[T, tuple[list[int], list[int]]]) -> Iterator[list[T]]:
    """Divide texts into batches: of those that begin alike where many do, else of those that are about as long."""
    together: dict[int, list[T]] = {}
    for key, (before, _) in texts.items():
        together.setdefault(id(before), []).append(key)
    for keys in together.values() if len(together) * MANY <= len(texts) else [list(texts)]:
        keys.sort(key=lambda key: len(texts[key][0]) + len(texts[key][1]))
        yield from (keys[i : i + BATCH] for i in range(0, len(keys), BATCH))


def _silenced(slots_MX: Tensor, there_MK: Tensor) -> Tensor:
    return (slots_MX.unflatten(1, (there_MK.shape[1], -1)) * there_MK[:, :, None]).flatten(1)


def _words(llm: LLM, text: str, skipped: int) -> tuple[list[int], list[Place]]:
    """Encode a text that is said or noted: ids, and the place of each in the text without its first characters."""
    ids, places = letters_of(llm.words()).encode(text)
    llm.check_known(ids)
    return ids, [(start - skipped, end - skipped) for start, end in places]


def _read_for(place: Place, read: Sequence[Place], spares: bool) -> list[int]:
    """Find the receiver's tokens that end within a sender's token, else the one that holds its last character, unless
    slots are spared."""
    start, end = place
    found = [i for i, (_, stop) in enumerate(read) if start < stop <= end]
    if spares:
        return found
    return found or [next((i for i, (_, stop) in enumerate(read) if stop >= end), len(read) - 1)]


def _needed(counts: Counter[int]) -> int:
    """Choose the slots per token that COVERED of them need."""
    total, sizes = sum(counts.values()), sorted(counts)
    reached = accumulate(counts[size] for size in sizes)
    return min(next(size for size, n in zip(sizes, reached, strict=True) if n >= COVERED * total), MOST_SLOTS)


def _widest(norms: Sequence[Norms]) -> Norms:
    sides = ([of.keys for of in norms], [of.values for of in norms])
    keys, values = (
        tuple((min(low for low, _ in layer), max(high for _, high in layer)) for layer in zip(*side, strict=True))
        for side in sides
    )
    return Norms(keys, values)
