"""A sender and a receiver that prefill the same conversations, and the batches that a fuser is trained on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from fedray.fusion import combine, controls
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.fusion.norms import Norms, norms_of
from fedray.llm.chat import encode_turns
from fedray.llm.decoding import Context
from fedray.llm.model import LLM, Encoded
from fedray.training.conversations import LabelledPrompt
from fedray.training.data import BATCH, Prefilled, answer_loss, answers, prefill, read
from fedray.training.recipe import FuserRecipe, Sampling, fuser_config
from fedray.training.worker_group import WorkerGroup

NORMS_FROM = 1024  # conversations, evenly chosen


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One conversation as both LLMs encode it; answer: the ids the receiver should decode."""

    row: int
    sent: Encoded
    own: Encoded
    answer: list[int]


class Pair:
    """Both LLMs' caches of the conversations: prefilled once where they fit in memory, else batch by batch.

    memory_bytes: what all caches together may take, None is no limit. blind: the control without a sender; a constant
    (its mean over another, fixed text) stands in place of every cache it would send. at_once: conversations that
    validation reads at a time.
    """

    def __init__(
        self,
        sender: LLM,
        receiver: LLM,
        conversations: Sequence[LabelledPrompt],
        *,
        memory_bytes: int | None = None,
        blind: bool = False,
        at_once: int = BATCH,
    ) -> None:
        self.at_once = at_once
        self.sender, self.receiver, self.conversations = sender, receiver, conversations
        self._constant = prefill(sender, [controls.CONSTANT_TEXT]).cache if blind else None
        self._examples: list[EncodedExample] = []
        self._kept: tuple[Prefilled, Prefilled] | None = None
        if memory_bytes is None or self._size() <= memory_bytes:
            self._examples = self.rows(range(len(self)))
            self._kept = read(sender, [e.sent for e in self._examples]), read(receiver, [e.own for e in self._examples])

    def __len__(self) -> int:
        return len(self.conversations)

    @property
    def lengths(self) -> list[int]:
        """Characters of every conversation."""
        texts = ((*t.before, t.prompt, t.answer, *(text for _, text in t.documents)) for t in self.conversations)
        return [sum(map(len, of)) for of in texts]

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    def rows(self, rows: Sequence[int]) -> list[EncodedExample]:
        """Encode conversations, or take them from memory."""
        return [self._examples[row] if self._examples else self._encode(row) for row in rows]

    def sent(self, batch: Sequence[EncodedExample]) -> Prefilled:
        """Return the sender's prompts, prefilled."""
        kept = self._kept and self._kept[0].select([e.row for e in batch])
        found = kept or read(self.sender, [e.sent for e in batch])
        if self._constant is None:
            return found
        return replace(found, cache=controls.constant(found.cache, self._constant))

    def own(self, batch: Sequence[EncodedExample]) -> Prefilled:
        """Return the receiver's prompts, prefilled."""
        kept = self._kept and self._kept[1].select([e.row for e in batch])
        return kept or read(self.receiver, [e.own for e in batch])

    def context(self, fuser: Fuser | None, batch: Sequence[EncodedExample]) -> tuple[Context, Prefilled]:
        """Fuse the sender's caches of these examples into the receiver's; without a fuser its own alone."""
        own = self.own(batch)
        if fuser is None:
            return combine.concat(own.own(), []), own
        parts = [self.sent(batch).part(fuser)]
        model = self.receiver.model
        return combine.fuse(fuser.config.operator, own.own(), own.spans, parts, "parallel", None, model), own

    def openness(self, fuser: Fuser, batch: Sequence[EncodedExample]) -> torch.Tensor:
        """Compute the mean weight (R, L, N) the fuser gives the sender's tokens."""
        own = self.own(batch)
        return combine.openness(own.own(), own.spans, self.sent(batch).part(fuser))

    @property
    def groups(self) -> list[str]:
        """The group that each conversation is counted under."""
        return [talk.group for talk in self.conversations]

    def config(self, recipe: FuserRecipe) -> FuserConfig:
        """The configuration of the fuser that is trained on it."""
        return fuser_config(recipe, self.sender.spec, self.receiver.spec)

    def fit(self, fuser: Fuser, rng: random.Random) -> None:
        """Fit an untrained fuser to the sender's caches of some conversations."""
        most = min(len(self), 512 if self.in_memory else self.at_once)
        fuser.fit_inputs(lambda: self.sent(self.rows(rng.sample(range(len(self)), most))).part(fuser).cache)

    def loss(self, fuser: Fuser | None, batch: Sequence[EncodedExample]) -> tuple[Tensor, Tensor]:
        """Compute the loss of each answer (B,) and whether greedy decoding gives it; without a fuser the receiver's."""
        context, own = self.context(fuser, batch)
        return answer_loss(own.llm, context, own.last_B1, [e.answer for e in batch])

    def norms(self) -> Norms:
        """Measure the range of the sender's caches: of all conversations in memory, or else of NORMS_FROM."""
        if self._kept is not None:
            return norms_of([self._kept[0].cache])
        rows = range(0, len(self), max(1, len(self) // NORMS_FROM))
        parts = (rows[i : i + self.at_once] for i in range(0, len(rows), self.at_once))
        return norms_of(self.sent(self.rows(part)).cache for part in parts)

    def _encode(self, row: int) -> EncodedExample:
        talk = self.conversations[row]
        sent, own = talk.turns("sender"), talk.turns("receiver")
        (answer,) = answers(self.receiver, [talk.answer])
        return EncodedExample(row, encode_turns(self.sender, sent), encode_turns(self.receiver, own), answer)

    def _size(self) -> int:
        """Estimate bytes of both LLMs' caches, padded to the longest prompt of a sample."""

        def token_bytes(llm: LLM) -> int:
            return llm.spec.values_per_token() * llm.model.dtype.itemsize

        sample = self.rows(range(0, len(self), max(1, len(self) // BATCH)))
        sides = (self.sender, [e.sent for e in sample]), (self.receiver, [e.own for e in sample])
        return len(self) * sum(max(len(e.ids) for e in read) * token_bytes(llm) for llm, read in sides)


def draws(
    lengths: Sequence[int],
    size: int,
    steps: int,
    rng: random.Random,
    *,
    first: int,
    parts: int,
    group: WorkerGroup,
    sampling: Sampling = "independent",
) -> Iterator[list[int]]:
    """Draw the rows of each step from step `first` on: this worker's, in the parts it reads one after the other.

    Every worker draws the same batches from the same generator. Where a batch falls into several parts, they are of
    similar lengths, so that little is padded; what a step is trained on stays the same.
    """
    parts *= group.size
    size = max(min(size, len(lengths)) // parts, 1)
    drawn = (independent if sampling == "independent" else epochs)(len(lengths), size * parts, rng)
    for rows in islice(drawn, first, steps):
        if parts > 1:
            rows.sort(key=lambda row: (lengths[row], row))
        for part in range(group.rank, parts, group.size):
            yield rows[part * size : (part + 1) * size]


def independent(count: int, size: int, rng: random.Random) -> Iterator[list[int]]:
    """Draw every batch from all rows."""
    while True:
        yield draw(count, size, rng)


def epochs(count: int, size: int, rng: random.Random) -> Iterator[list[int]]:
    """Draw batches in epochs, each in an order of its own."""
    left: list[int] = []
    while True:
        while len(left) < size:
            more = rng.sample(range(count), count)
            left += [row for row in more if row not in left] + [row for row in more if row in left]
        rows, left = left[:size], left[size:]
        yield rows


def draw(count: int, size: int, rng: random.Random) -> list[int]:
    """Draw a batch of distinct rows out of `count`."""
    chosen: dict[int, None] = {}
    while len(chosen) < min(size, count):
        chosen[rng.randrange(count)] = None
    return list(chosen)
