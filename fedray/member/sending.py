"""What a sender sends of a prompt: its cache of all of it, of the user's text, or of a draft of the answer.

What must outlive a call lies in a session (sessions.py). `@ships`: (receipt, payload).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fedray.errors import FedrayError
from fedray.fusion import combine, controls
from fedray.fusion.sent import sent_of
from fedray.llm import decoding
from fedray.llm.cache import KVCache, counted, layers_of
from fedray.llm.catalogue import shown
from fedray.llm.rotary import unrotate
from fedray.member.clock import Clock
from fedray.member.reader import Reader
from fedray.member.sessions import Session
from fedray.methods.method import FuserChoice, Wire
from fedray.types import NO_NUMBERS, Generation, Layers, Receipt, Talk, Usage
from fedray.wire.payload import Payload, pack, ships
from fedray.wire.selection import select

AS_IT_IS = Wire()
CLOSING = frozenset(".!?。！？")  # noqa: RUF001


class Sender(Reader):
    """The part of a member that sends caches."""

    def prefill(
        self,
        session: str,
        rows: tuple[int, ...],
        prompts: tuple[str, ...],
        token_ids: tuple[tuple[int, ...], ...] | None = None,
        talk: Talk | None = None,
        draft: FuserChoice | None = None,
    ) -> Receipt:
        """Read prompts as Reader.prefill does, and draft the answers, so that `share` need not."""
        receipt = super().prefill(session, rows, prompts, token_ids, talk)
        if draft is None:
            return receipt
        clock = Clock(self.llm.device)
        self._write_draft(session, draft)
        clock.lap(f"draft[{self.name}]")
        return replace(receipt, usage=receipt.usage + Usage(clock.seconds))

    @ships
    def share(
        self,
        session: str,
        rows: tuple[int, ...],
        *,
        prompts: tuple[str, ...] | None = None,
        token_ids: tuple[tuple[int, ...], ...] | None = None,
        talk: Talk | None = None,
        spans: bool = False,
        control: str = "none",
        seed: int = 0,
        wire: Wire = AS_IT_IS,
        layers: Layers | None = None,
        tokens: str = "prompt",
        unrotated: bool = False,
        draft: FuserChoice | None = None,
    ) -> tuple[Receipt, Payload]:
        """Send the caches of some rows. With `prompts` (or `token_ids`: one per row in `rows`) they are read first.

        control: "noise" sends noise of a cache's moments instead, "constant" one fixed vector per layer and head.
        spans: send the place of every token in the text too (mix needs it). wire: how it is written, and which tokens
        and layers are left out; layers: those that are read, None is all. tokens, unrotated: as Artifact has them;
        draft: what is drafted, with tokens="draft".
        """
        clock = Clock(self.llm.device)
        read = prompts is not None or token_ids is not None
        if read:
            self._read(session, rows, prompts or (), token_ids, None, talk)
            clock.lap(f"prefill[{self.name}]")
        held = self._sessions.get(session)
        if draft is not None and held.draft is None:
            self._write_draft(session, draft)
            clock.lap(f"draft[{self.name}]")
        picked = [held.rows.index(row) for row in rows]
        cache = self._sent(held, picked, tokens, unrotated)
        if control in ("noise", "constant"):
            cache = self._without_knowledge(cache, control, [held.ids[i] for i in picked], seed, unrotated)
        places = [held.spans[i] for i in picked] if spans else None
        kept, layers = select(cache, layers, wire, seed)
        payload = pack(self.name, kept, list(rows), places, codec=wire.codec, layers=layers, whole=cache.lengths)
        clock.lap(f"pack[{self.name}]")
        usage = self._usage(clock, held) if read else Usage(clock.seconds)
        return Receipt(self.name, usage), payload

    @torch.no_grad()
    def _write_draft(self, session: str, choice: FuserChoice) -> None:
        """Answer every prompt of a session greedily, and keep the cache of the answers' tokens.

        Without the mark that closes it; where the answer is empty its draft is the token that ends it.
        """
        held = self._sessions.get(session)
        context = combine.concat(held.own(), [])
        before = context.visible_BS.shape[1] + 1  # slots of the prompts
        logits = self._read_rest(held, context)
        failed: set[int] = set()
        ids: list[list[int]] = [[] for _ in held.ids]
        for tokens in self._decode(session, held.ids, context, logits, Generation(choice.max_tokens), failed):
            for row, token in zip(ids, tokens, strict=True):
                row += [] if token is None else [token]
        self._sessions.check(session)
        if failed:
            raise FedrayError(f"{shown(self.name)}: {NO_NUMBERS}")
        end = min(self.llm.stop_ids, default=self.llm.pad_id)
        drafts = [self._unclosed(row) or [end] for row in ids]
        longest = max(map(len, drafts))
        if not all(ids):  # whatever ends an answer, its draft is the same, alone and beside others
            context, logits = combine.concat(held.own(), []), None
            self._read_rest(held, context)
        while (there := context.visible_BS.shape[1] - before) < longest:  # the last ones were not read yet
            column = [row[there] if there < len(row) else end for row in drafts]
            decoding.extend(self.llm.model, context, held.cache.lengths.new_tensor(column)[:, None])
        lengths = held.cache.lengths.new_tensor([len(row) for row in drafts])
        positions = held.cache.lengths[:, None] + counted(longest, lengths)
        sides = zip(*layers_of(context.cache), strict=True)
        keys, values = (tuple(layer[:, :, before : before + longest] for layer in side) for side in sides)
        held.draft = KVCache(held.cache.spec, keys, values, lengths, positions)

    def _unclosed(self, ids: list[int]) -> list[int]:
        """Leave out the mark that closes an answer: it says nothing, and is read as if it did."""
        closed = len(ids) > 1 and self.llm.decode(ids[-1:]).strip() in CLOSING
        return ids[:-1] if closed else ids

    def _sent(self, held: Session, picked: list[int], tokens: str, unrotated: bool) -> KVCache:
        """What is sent of some rows, before tokens and layers are left out."""
        read = held.draft if tokens == "draft" else held.cache
        assert read is not None, "drafted before it is sent"
        spans = [held.spans[i] for i in picked]
        return sent_of(self.llm.model, read.select(picked), spans, tokens, unrotated)

    def _without_knowledge(
        self, cache: KVCache, control: str, ids: list[list[int]], seed: int, unrotated: bool
    ) -> KVCache:
        text = controls.MOMENTS_TEXT if control == "noise" else controls.CONSTANT_TEXT
        same, _ = decoding.prefill(self.llm.model, [self.llm.encode(text).ids], self.llm.pad_id)
        if unrotated:
            same = replace(same, keys=unrotate(self.llm.model, same.keys, same.positions))
        if control == "noise":
            return controls.noise(cache, same, [f"{self.name} {row} {seed}" for row in ids])
        return controls.constant(cache, same)
